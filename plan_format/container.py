"""How do a plan's sections lie in one file, and which bytes are refused before anything is decoded?

Little-endian. Header: magic (8), container version u32, section count u32, sha256 of the section table (32). Table: per
section a kind (16 bytes, ASCII, padded with NUL), offset u64, length u64, sha256 (32). Sections start at multiples of
4096, in table order, with zero bytes between them; the file ends where the last section ends.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hjgc.plan_format.errors import InputError, PlanError
from hjgc.plan_format.files import write_atomically

MAGIC = b"HJGCPLAN"
VERSION = 1
ALIGNMENT = 4096
KINDS = ("plan", "debug", "constants", "cubin", "ptx", "islands")
HEADER = struct.Struct("<8sII32s")
ENTRY = struct.Struct("<16sQQ32s")
MAX_FILE_BYTES = 4 << 30
MAX_SECTION_BYTES = {"plan": 64 << 20, "debug": 256 << 20, "constants": 256 << 20}


@dataclass(frozen=True)
class Section:
    kind: str
    offset: int
    length: int
    sha256: bytes


class Container:
    """An open plan file: the checked section table, and each section's bytes, digest-checked when first read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = _map_file(path)
        try:
            self.sections = _read_table(self._map, path)
        except BaseException:
            self._map.close()
            raise

    def read(self, kind: str) -> bytes:
        """The section's bytes, empty if the plan has none. Raises PlanError if the digest does not match."""
        section = self.sections.get(kind)
        if section is None:
            return b""
        data = self._map[section.offset : section.offset + section.length]
        if hashlib.sha256(data).digest() != section.sha256:
            raise PlanError(
                self.path,
                "expected the sha256 in the section table, found another",
                field=f"section {kind}",
                next_step="the file is damaged: copy or compile it again",
            )
        return data

    def close(self) -> None:
        self._map.close()


def write(path: Path, sections: Mapping[str, bytes]) -> None:
    """Write the container; the file appears whole or not at all. Raises InputError where it cannot be written."""
    write_atomically(path, encode(sections))


def encode(sections: Mapping[str, bytes]) -> bytes:
    """The container as bytes: the same sections give the same bytes."""
    present = [(kind, sections[kind]) for kind in KINDS if sections.get(kind)]
    offset = _align(HEADER.size + ENTRY.size * len(present))
    table = b""
    body: list[tuple[int, bytes]] = []
    for kind, data in present:
        table += ENTRY.pack(kind.encode(), offset, len(data), hashlib.sha256(data).digest())
        body.append((offset, data))
        offset = _align(offset + len(data))
    out = bytearray(HEADER.pack(MAGIC, VERSION, len(present), hashlib.sha256(table).digest()) + table)
    for start, data in body:
        out += bytes(start - len(out)) + data
    return bytes(out)


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _map_file(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(len(MAGIC))
            if head != MAGIC:
                raise PlanError(path, _wrong_magic(head), next_step=_hint(head))
            if size > MAX_FILE_BYTES:
                raise PlanError(path, f"expected at most {MAX_FILE_BYTES} bytes, found {size}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise PlanError(path, "expected a plan file, found nothing there", next_step="see `hjgc compile`") from None
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be read: {error}") from None


def _wrong_magic(head: bytes) -> str:
    return f"expected a plan that starts with {MAGIC!r}, found {head!r}"


def _hint(head: bytes) -> str:
    return "is this an ONNX file? try `hjgc compile`" if head[:1] == b"\x08" else "make one with `hjgc compile`"


def _read_table(data: mmap.mmap, path: Path) -> dict[str, Section]:
    if len(data) < HEADER.size:
        raise PlanError(path, f"expected a header of {HEADER.size} bytes, found {len(data)} bytes in all")
    _, version, count, table_sha256 = HEADER.unpack(data[: HEADER.size])
    if version != VERSION:
        raise PlanError(
            path, f"expected {VERSION}, found {version}", field="container version", next_step="compile the model again"
        )
    if not 1 <= count <= len(KINDS):
        raise PlanError(path, f"expected 1 to {len(KINDS)}, found {count}", field="section count")
    table = data[HEADER.size : HEADER.size + ENTRY.size * count]
    if hashlib.sha256(table).digest() != table_sha256:
        raise PlanError(path, "expected the sha256 in the header, found another", field="section table")
    return _check_sections([_entry(raw, path) for raw in ENTRY.iter_unpack(table)], data, path)


def _entry(raw: tuple[bytes, int, int, bytes], path: Path) -> Section:
    name, offset, length, sha256 = raw
    kind = name.rstrip(b"\0").decode("ascii", "replace")
    if kind not in KINDS:
        raise PlanError(path, f"expected one of {', '.join(KINDS)}, found {kind!r}", field="section table")
    limit = MAX_SECTION_BYTES.get(kind, MAX_FILE_BYTES)
    if length > limit:
        raise PlanError(path, f"expected at most {limit} bytes, found {length}", field=f"section {kind}")
    return Section(kind, offset, length, sha256)


def _check_sections(sections: list[Section], data: mmap.mmap, path: Path) -> dict[str, Section]:
    found: dict[str, Section] = {}
    end = HEADER.size + ENTRY.size * len(sections)
    for section in sections:
        field = f"section {section.kind}"
        if section.kind in found:
            raise PlanError(path, "expected once, found twice", field=field)
        if section.offset != _align(end):
            raise PlanError(path, f"expected offset {_align(end)}, found {section.offset}", field=field)
        if section.offset + section.length > len(data):
            raise PlanError(
                path, f"expected {section.length} bytes at {section.offset}, found a file of {len(data)}", field=field
            )
        if any(data[end : section.offset]):
            raise PlanError(path, "expected zero bytes before it, found others", field=field)
        found[section.kind] = section
        end = section.offset + section.length
    if end != len(data):
        raise PlanError(path, f"expected the file to end at {end}, found {len(data)} bytes")
    if "plan" not in found:
        raise PlanError(path, "expected a plan section, found none")
    return found
