"""Do the bytes of an ONNX model hold all of its data, or does a tensor name a file, which ONNX Runtime would open? What
numbers do its attributes hold?

Walks over the protobuf message that need no `onnx`. The first goes into every message that may hold a tensor, so it is
as strict as can be: bytes that two readers might understand differently are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

PARTS: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
"""The fields that lead to tensors, by message and number, with the message that they hold."""
EXTERNAL_DATA, DATA_LOCATION = 13, 14
"""Fields of TensorProto: which file, and whether (0 says no)."""
ATTRIBUTE_NAME, ATTRIBUTE_INTEGER = 1, 3
"""Fields of AttributeProto."""
MAX_NESTING = 64
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
"""How a field is coded. Groups, 3 and 4, ONNX has not."""
MAX_TAG_BYTES, MAX_VARINT_BYTES = 5, 10


def check_data_inside(data: bytes) -> None:
    """Raises ValueError with a sentence for a model of which a tensor may lie in a file, and for damaged bytes."""
    _walk(data, "ModelProto", 0, len(data), 1)


def _walk(data: bytes, message: str, place: int, end: int, level: int) -> None:
    """The fields of one message. It calls itself for those that may hold tensors, MAX_NESTING levels at most."""
    if level > MAX_NESTING:
        raise ValueError(f"expected ONNX messages {MAX_NESTING} deep at most, found a deeper one at byte {place}")
    parts, is_tensor = PARTS[message], message == "TensorProto"
    while place < end:
        tag, begin = _varint(data, place, end, MAX_TAG_BYTES)
        number, coding = tag >> 3, tag & 7
        value, begin, behind = _content(data, coding, begin, end)
        if number == 0:
            raise ValueError(f"expected ONNX fields counted from 1, found 0 at byte {place}")
        if is_tensor:
            _check_tensor_field(number, coding, value, place)
        if number in parts:
            if coding != BYTES:
                raise ValueError(f"expected a {parts[number]} as bytes, found coding {coding} at byte {place}")
            _walk(data, parts[number], begin, behind, level + 1)
        place = behind


def attribute_numbers(data: bytes, name: str) -> Iterator[int]:
    """The integer that each attribute of this name holds, of every node wherever it lies. For bytes that passed
    `check_data_inside`."""
    return _numbers(data, "ModelProto", 0, len(data), name.encode())


def _numbers(data: bytes, message: str, place: int, end: int, name: bytes) -> Iterator[int]:
    found, held = b"", 0
    while place < end:
        tag, begin = _varint(data, place, end, MAX_TAG_BYTES)
        number, coding = tag >> 3, tag & 7
        value, begin, behind = _content(data, coding, begin, end)
        if message == "AttributeProto" and (number, coding) == (ATTRIBUTE_NAME, BYTES):
            found = data[begin:behind]
        if message == "AttributeProto" and (number, coding) == (ATTRIBUTE_INTEGER, VARINT):
            held = value
        if number in PARTS[message]:
            yield from _numbers(data, PARTS[message][number], begin, behind, name)
        place = behind
    if message == "AttributeProto" and found == name:
        yield held


def _check_tensor_field(number: int, coding: int, value: int, place: int) -> None:
    if number == EXTERNAL_DATA or (number == DATA_LOCATION and (coding != VARINT or value != 0)):
        raise ValueError(f"expected all data inside the ONNX model, found a tensor that names a file at byte {place}")


def _content(data: bytes, coding: int, place: int, end: int) -> tuple[int, int, int]:
    """The value of a number (else 0), and where the content begins and ends."""
    if coding == VARINT:
        value, behind = _varint(data, place, end, MAX_VARINT_BYTES)
        return value, place, behind
    if coding == BYTES:
        length, place = _varint(data, place, end, MAX_VARINT_BYTES)
    elif coding in (FIXED_64, FIXED_32):
        length = 8 if coding == FIXED_64 else 4
    else:
        raise ValueError(f"expected an ONNX field of coding 0, 1, 2 or 5, found {coding} at byte {place}")
    if length > end - place:
        raise ValueError(f"expected {length} bytes of an ONNX field, found {end - place} at byte {place}")
    return 0, place, place + length


def _varint(data: bytes, place: int, end: int, most: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends; only in as few bytes as it needs."""
    value = 0
    for i, byte in enumerate(data[place : min(end, place + most)]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            fits = value < 1 << (32 if most == MAX_TAG_BYTES else 64)
            if not fits or (i > 0 and byte == 0):
                break
            return value, place + i + 1
    raise ValueError(f"expected an ONNX number in as few bytes as it needs, found another at byte {place}")
