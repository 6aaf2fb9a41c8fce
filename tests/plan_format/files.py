"""How does a test take a plan file apart and put a wrong one together, digests right or not?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from hjgc.plan_format.container import ENTRY, HEADER, MAGIC, VERSION


@dataclass(frozen=True)
class Part:
    """One section: the bytes, and what the table will say of them."""

    kind: bytes
    data: bytes
    offset: int
    length: int

    def holding(self, data: bytes) -> Part:
        return replace(self, data=data, length=len(data))


def take_apart(path: Path) -> list[Part]:
    raw = path.read_bytes()
    count = HEADER.unpack_from(raw)[2]
    entries = [ENTRY.unpack_from(raw, HEADER.size + i * ENTRY.size) for i in range(count)]
    return [Part(kind.rstrip(b"\0"), raw[at : at + size], at, size) for kind, at, size, _ in entries]


def put_together(parts: list[Part], *, version: int = VERSION, count: int | None = None) -> bytes:
    """Every digest as it should be; offsets and lengths as the parts say, the data where it belongs."""
    entries = [ENTRY.pack(part.kind, part.offset, part.length, hashlib.sha256(part.data).digest()) for part in parts]
    table = b"".join(entries)
    shown = len(parts) if count is None else count
    raw = bytearray(HEADER.pack(MAGIC, version, shown, hashlib.sha256(table).digest()) + table)
    for part in parts:
        raw += bytes(-len(raw) % 4096) + part.data
    return bytes(raw)


def placed(parts: list[Part]) -> list[Part]:
    """The same sections with the offsets and lengths that their data needs."""
    end = HEADER.size + len(parts) * ENTRY.size
    found: list[Part] = []
    for part in parts:
        start = -(-end // 4096) * 4096
        found.append(replace(part, offset=start, length=len(part.data)))
        end = start + len(part.data)
    return found


def with_section(parts: list[Part], kind: bytes, data: bytes) -> bytes:
    """The file with other bytes in one section, everything else made to fit."""
    return put_together(placed([part.holding(data) if part.kind == kind else part for part in parts]))
