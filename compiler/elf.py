"""How many registers does a kernel take, by the word of its cubin?"""

from __future__ import annotations

import struct
from collections.abc import Iterator

SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
INFO = struct.Struct("<BBH")
HAS_DATA, REGISTER_COUNT = 0x04, 0x2F


def registers(cubin: bytes, entry: str) -> int | None:
    """From the attribute that ptxas leaves in `.nv.info` for each kernel; None where it left none."""
    sections = dict(_sections(cubin))
    symbols = _symbols(sections.get(".symtab", b""), sections.get(".strtab", b""))
    for attribute, data in _attributes(sections.get(".nv.info", b"")):
        if attribute == REGISTER_COUNT:
            symbol, count = struct.unpack("<II", data)
            if symbols.get(symbol) == entry:
                return count
    return None


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [SECTION.unpack_from(elf, table + size * i) for i in range(count)]
    strings = elf[headers[names][4] :]
    for name, _, _, _, offset, length, *_ in headers:
        yield _string(strings, name), elf[offset : offset + length]


def _symbols(table: bytes, strings: bytes) -> dict[int, str]:
    entries = enumerate(SYMBOL.iter_unpack(table[: len(table) // SYMBOL.size * SYMBOL.size]))
    return {i: _string(strings, entry[0]) for i, entry in entries}


def _attributes(info: bytes) -> Iterator[tuple[int, bytes]]:
    """Attributes of any format; only the one format carries data after its header, as long as its last field says."""
    at = 0
    while at + INFO.size <= len(info):
        kind, attribute, size = INFO.unpack_from(info, at)
        at += INFO.size
        if kind == HAS_DATA:
            yield attribute, info[at : at + size]
            at += size


def _string(table: bytes, start: int) -> str:
    return table[start : table.index(b"\0", start)].decode()
