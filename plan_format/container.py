"""How do a plan's sections lie in one file, and which bytes are refused before anything is decoded?

Little-endian. Header: magic (8), container version u32, section count u32, sha256 of the section table (32). Table: per
section a kind (16 bytes, ASCII, padded with NUL), offset u64, length u64, sha256 (32). Sections start at multiples of
4096, in table order, with zero bytes between them; the file ends where the last section ends. The table keeps the order
of `KINDS`, each kind at most once, none empty: equal sections give equal files.

The file is read, not mapped: one that shrinks under a reader is an error to report, where a mapping would be the end of
the process.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hjgc.plan_format.errors import InputError, PlanError
from hjgc.plan_format.files import write_atomically

MAGIC = b"HJGCPLAN"
VERSION = 1
ALIGNMENT = 4096
KINDS = ("plan", "debug", "constants", "cubin", "ptx", "islands", "templates")
HEADER = struct.Struct("<8sII32s")
ENTRY = struct.Struct("<16sQQ32s")
MAX_FILE_BYTES = 4 << 30
READ_BYTES = 1 << 30
MAX_SECTION_BYTES = {
    "plan": 32 << 20,
    "debug": 64 << 20,
    "constants": 256 << 20,
    "islands": 1 << 30,
    "templates": 16 << 20,
}


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
        self._reading = threading.Lock()
        self._file = _open(path)
        try:
            self.sections = _read_table(self._file, path)
        except BaseException:
            self._file.close()
            raise

    def read(self, kind: str) -> bytes:
        """The section's bytes, empty if the plan has none; from any thread. Raises PlanError if the digest differs."""
        section = self.sections.get(kind)
        if section is None:
            return b""
        with self._reading:
            data = _read_exactly(self._file, section.offset, section.length, f"section {kind}", self.path)
        if hashlib.sha256(data).digest() != section.sha256:
            raise PlanError(
                self.path,
                "expected the sha256 in the section table, found another",
                field=f"section {kind}",
                next_step="the file is damaged: copy or compile it again",
            )
        return data

    def close(self) -> None:
        self._file.close()


def write(path: Path, sections: Mapping[str, bytes]) -> None:
    """Write the container; the file appears whole or not at all. Raises PlanError for a section that no reader would
    take, InputError where it cannot be written."""
    for kind, data in sections.items():
        if data:
            _check_length(kind, len(data), path)
    whole = encode(sections)
    if len(whole) > MAX_FILE_BYTES:
        raise PlanError(path, f"expected at most {MAX_FILE_BYTES} bytes, found {len(whole)}", field="file")
    write_atomically(path, whole)


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


def _open(path: Path) -> BinaryIO:
    """The file, found to be a regular one. Raises PlanError if there is none, InputError if it cannot be read."""
    try:
        file = open(path, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115 (the container closes it)
    except FileNotFoundError:
        raise PlanError(path, "expected a plan file, found nothing there", next_step="see `hjgc compile`") from None
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be read: {error}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise InputError(path, "expected a plan file, found what is no regular file")
    return file


def _without_waiting(path: str, flags: int) -> int:
    """Open so that a pipe put in the file's place cannot make us wait for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_exactly(file: BinaryIO, offset: int, length: int, field: str, path: Path) -> bytes:
    """`length` bytes, which the caller has bounded. Raises PlanError if the file has fewer by now."""
    try:
        data = _read_at(file, offset, length)
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be read: {error}") from None
    if len(data) != length:
        raise PlanError(path, f"expected {length} bytes at {offset}, found {len(data)}", field=field)
    return data


def _read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    pieces: list[bytes] = []
    while length and (piece := file.read(min(length, READ_BYTES))):  # one call may return less than was asked for
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def _wrong_magic(head: bytes) -> str:
    return f"expected a plan that starts with {MAGIC!r}, found {head!r}"


def _hint(head: bytes) -> str:
    return "is this an ONNX file? try `hjgc compile`" if head[:1] == b"\x08" else "make one with `hjgc compile`"


def _read_table(file: BinaryIO, path: Path) -> dict[str, Section]:
    size = os.fstat(file.fileno()).st_size
    magic = _read_exactly(file, 0, min(size, len(MAGIC)), "magic", path)
    if magic != MAGIC:
        raise PlanError(path, _wrong_magic(magic), field="magic", next_step=_hint(magic))
    if not HEADER.size <= size <= MAX_FILE_BYTES:
        raise PlanError(path, f"expected {HEADER.size} to {MAX_FILE_BYTES} bytes, found {size}", field="file")
    _, version, count, table_sha256 = HEADER.unpack(_read_exactly(file, 0, HEADER.size, "header", path))
    if version != VERSION:
        raise PlanError(
            path, f"expected {VERSION}, found {version}", field="container version", next_step="compile the model again"
        )
    if not 1 <= count <= len(KINDS):
        raise PlanError(path, f"expected 1 to {len(KINDS)}, found {count}", field="section count")
    table = _read_exactly(file, HEADER.size, ENTRY.size * count, "section table", path)
    if hashlib.sha256(table).digest() != table_sha256:
        raise PlanError(path, "expected the sha256 in the header, found another", field="section table")
    sections = [_entry(raw, path) for raw in ENTRY.iter_unpack(table)]
    _check_order(sections, path)
    _check_places(sections, file, size, path)
    return {section.kind: section for section in sections}


def _entry(raw: tuple[bytes, int, int, bytes], path: Path) -> Section:
    name, offset, length, sha256 = raw
    kind = name.rstrip(b"\0").decode("ascii", "replace")
    if kind not in KINDS:
        raise PlanError(path, f"expected one of {', '.join(KINDS)}, found {kind!r}", field="section table")
    _check_length(kind, length, path)
    return Section(kind, offset, length, sha256)


def _check_length(kind: str, length: int, path: Path) -> None:
    limit = MAX_SECTION_BYTES.get(kind, MAX_FILE_BYTES)
    if not 0 < length <= limit:
        raise PlanError(path, f"expected 1 to {limit} bytes, found {length}", field=f"section {kind}")


def _check_order(sections: list[Section], path: Path) -> None:
    """A plan, and each kind at most once, in the order of KINDS."""
    kinds = [section.kind for section in sections]
    expected = [kind for kind in KINDS if kind in kinds or kind == "plan"]
    if kinds != expected:
        problem = f"expected the sections {', '.join(expected)}, found {', '.join(kinds)}"
        raise PlanError(path, problem, field="section table")


def _check_places(sections: list[Section], file: BinaryIO, size: int, path: Path) -> None:
    """Each section at the first aligned place after the one before, zero bytes between, nothing after the last."""
    end = HEADER.size + ENTRY.size * len(sections)
    for section in sections:
        field = f"section {section.kind}"
        if section.offset != _align(end):
            raise PlanError(path, f"expected offset {_align(end)}, found {section.offset}", field=field)
        if section.offset + section.length > size:
            raise PlanError(
                path, f"expected {section.length} bytes at {section.offset}, found a file of {size}", field=field
            )
        if any(_read_exactly(file, end, section.offset - end, field, path)):
            raise PlanError(path, "expected zero bytes before it, found others", field=field)
        end = section.offset + section.length
    if end != size:
        raise PlanError(path, f"expected the file to end at {end}, found {size} bytes", field="file")
