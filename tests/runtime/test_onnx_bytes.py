"""Is every model that names a file found out, and every other one let pass?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import onnx
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from hjgc.runtime.onnx_bytes import (
    DATA_LOCATION,
    EXTERNAL_DATA,
    MAX_NESTING,
    PARTS,
    attribute_numbers,
    check_data_inside,
)


def messages(message: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Every message that this one may hold, by name."""
    if message.name not in found:
        found[message.name] = message
        for field in message.fields:
            if field.message_type is not None:
                messages(field.message_type, found)
    return found


def test_the_walk_knows_every_way_to_a_tensor() -> None:
    """As the installed onnx describes its messages."""
    every = messages(ModelProto.DESCRIPTOR, {})
    leads = {name for name, message in every.items() if "TensorProto" in messages(message, {})}
    wanted = {
        name: {
            f.number: f.message_type.name for f in every[name].fields if f.message_type and f.message_type.name in leads
        }
        for name in leads
    }
    assert wanted == PARTS
    fields = TensorProto.DESCRIPTOR.fields_by_name
    assert (fields["external_data"].number, fields["data_location"].number) == (EXTERNAL_DATA, DATA_LOCATION)
    assert TensorProto.DEFAULT == 0


def in_file() -> TensorProto:
    tensor = TensorProto(name="secret", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def graph(*nodes: NodeProto) -> GraphProto:
    return helper.make_graph(nodes, "g", [], [])


def branch(inner: GraphProto) -> NodeProto:
    return helper.make_node("If", ["go"], ["y"], then_branch=inner, else_branch=graph())


def constant(tensor: TensorProto) -> NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def initializer(tensor: TensorProto) -> ModelProto:
    return ModelProto(graph=GraphProto(initializer=[tensor]))


def sparse(tensor: TensorProto) -> ModelProto:
    model = ModelProto()
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    return model


def default_of_a_function(tensor: TensorProto) -> ModelProto:
    attribute = AttributeProto(name="a", t=tensor)
    return ModelProto(functions=[onnx.FunctionProto(name="f", attribute_proto=[attribute])])


PLACES: list[Callable[[TensorProto], ModelProto]] = [
    initializer,
    sparse,
    lambda tensor: ModelProto(graph=graph(constant(tensor))),
    lambda tensor: ModelProto(graph=graph(branch(graph(branch(graph(constant(tensor))))))),
    lambda tensor: ModelProto(graph=graph(branch(initializer(tensor).graph))),
    lambda tensor: ModelProto(functions=[onnx.FunctionProto(name="f", node=[constant(tensor)])]),
    default_of_a_function,
]


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_a_file_is_found_wherever_it_is(place: Callable[[TensorProto], ModelProto]) -> None:
    check_data_inside(place(TensorProto(name="here", data_type=1, dims=[1], float_data=[1])).SerializeToString())
    half, other = in_file(), in_file()
    half.ClearField("external_data")
    other.ClearField("data_location")
    for tensor in (in_file(), half, other):
        with pytest.raises(ValueError, match="a tensor that names a file"):
            check_data_inside(place(tensor).SerializeToString())


def nested(levels: int) -> bytes:
    """The graph of a model, a node of it, an attribute of that, a graph of that, and so on."""
    data = b""
    for i in reversed(range(levels)):
        number = 7 if i == 0 else (6, 1, 5)[i % 3]
        data = bytes([number << 3 | 2]) + length(len(data)) + data
    return data


def length(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x3a\x80\x00", "in as few bytes as it needs"),  # a length
        (b"\xba\x00\x00", "in as few bytes as it needs"),  # a tag
        (b"\x08\x80\x80\x00", "in as few bytes as it needs"),  # a value
        (b"\x08" + b"\xff" * 9 + b"\x02", "in as few bytes as it needs"),  # past 64 bits
        (b"\x08" + b"\xff" * 10 + b"\x01", "in as few bytes as it needs"),
        (b"\xff\xff\xff\xff\x1f\x00", "in as few bytes as it needs"),  # a tag past 32 bits
        (b"\x08\x80", "in as few bytes as it needs"),  # cut short
        (b"\x08", "in as few bytes as it needs"),
        (b"\x3a\x05\x0a", "expected 5 bytes of an ONNX field, found 1"),
        (b"\x3a\x02\x0a\x01\x00", "expected 1 bytes of an ONNX field, found 0"),  # past its message
        (b"\x09\x00", "expected 8 bytes"),
        (b"\x0d\x00", "expected 4 bytes"),
        (b"\x3b\x3c", "coding 0, 1, 2 or 5, found 3"),
        (b"\x3c", "found 4"),
        (b"\x3e", "found 6"),
        (b"\x3f", "found 7"),
        (b"\x38\x00", "expected a GraphProto as bytes, found coding 0"),
        (b"\x02\x00", "counted from 1, found 0"),
        (b"\x3a\x05\x2a\x03\x72\x01\x00", "a tensor that names a file"),  # where it lies, as bytes
        (b"\x3a\x04\x2a\x02\x68\x00", "a tensor that names a file"),  # which file, as a number
    ],
)
def test_damaged_bytes_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_data_inside(data)


def test_what_is_written_as_it_should_be_passes() -> None:
    check_data_inside(b"")
    check_data_inside(b"\x08" + b"\xff" * 9 + b"\x01")  # -1
    check_data_inside(b"\x3a\x04\x2a\x02\x70\x00")  # a tensor that lies here


def test_nesting_has_an_end() -> None:
    check_data_inside(nested(MAX_NESTING - 1))
    for levels in (MAX_NESTING, 2000):
        with pytest.raises(ValueError, match="64 deep at most"):
            check_data_inside(nested(levels))


def test_a_large_model_takes_time_in_proportion() -> None:
    begun = time.perf_counter()
    check_data_inside(initializer(TensorProto(raw_data=bytes(1 << 26))).SerializeToString())
    check_data_inside(b"\x3a\xc0\x9a\x0c" + b"\x0a\x00" * 100_000)  # that many nodes
    assert time.perf_counter() - begun < 5


def test_a_tensor_may_be_called_location() -> None:
    check_data_inside(initializer(TensorProto(name="location", raw_data=bytes(4))).SerializeToString())


@pytest.mark.parametrize(
    ("attribute", "numbers"),
    [
        (b"\x0a\x02to\x18\x07", [7]),
        (b"\x18\x07\x0a\x02to", [7]),
        (b"\x0a\x02to", [0]),
        (b"\x0a\x02to\x18\x01\x18\x07", [7]),
        (b"\x0a\x02to\x18" + b"\xff" * 9 + b"\x01", [2**64 - 1]),
        (b"\x0a\x02to\x18\x07\x08\x05", [7]),
        (b"\x0a\x02to\x18\x07\x1a\x00", [7]),
        (b"\x0a\x02no\x18\x07", []),
    ],
)
def test_an_attribute_holds_what_protobuf_reads_in_it(attribute: bytes, numbers: list[int]) -> None:
    """The last of fields that come twice; a field of another coding than its own counts for nothing."""
    read = AttributeProto.FromString(attribute)
    assert [read.i % 2**64] == numbers or read.name != "to"
    node = b"\x2a" + bytes([len(attribute)]) + attribute
    graph = b"\x0a" + bytes([len(node)]) + node
    data = b"\x3a" + bytes([len(graph)]) + graph
    check_data_inside(data)
    assert list(attribute_numbers(data, "to")) == numbers
