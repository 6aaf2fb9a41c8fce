"""How does a plan become bytes, and bytes a plan that may be trusted to be well formed?

Decoding is four steps, each bounded by the one before: `msgpack` walks the bytes without building anything (so every
length it claims is really there, and nesting is limited), `msgspec` builds the frozen structs and checks every type,
encoding them again must give the same bytes (so one plan has one spelling: no key twice, no default spelt out, no
float where an integer belongs), `verify` checks what types cannot say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgpack
import msgspec

from hjgc.plan_format import container
from hjgc.plan_format.building import template_digest
from hjgc.plan_format.errors import PlanError
from hjgc.plan_format.structs import DebugMap, Plan
from hjgc.plan_format.verify import verify, verify_debug

_T = TypeVar("_T", Plan, DebugMap)


class PlanFile:
    """A plan read from a file. The plan is verified; the other sections are read, and their digests checked, when
    asked for. Close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._container = container.Container(self.path)
        try:
            self.plan = decode(self._container.read("plan"), Plan, self.path)
            verify(self.plan, self.section_lengths(), self.path)
        except BaseException:
            self._container.close()
            raise

    def section_lengths(self) -> dict[str, int]:
        return {kind: section.length for kind, section in self._container.sections.items()}

    def section(self, kind: str) -> bytes:
        """A section's bytes, digest checked; empty if absent. Raises PlanError."""
        return self._container.read(kind)

    def debug(self) -> DebugMap | None:
        """The debug map, verified against the plan; None if it was stripped. Raises PlanError."""
        data = self.section("debug")
        if not data:
            return None
        debug = decode(data, DebugMap, self.path)
        verify_debug(debug, self.plan, self.path)
        return debug

    def template_text(self, index: int) -> dict[str, bytes]:
        """The files of `plan.templates[index]` by name, found to have the template's digest; none if the plan has no
        text for it. Raises PlanError."""
        template = self.plan.templates[index]
        data = self.section("templates") if template.files else b""
        files = {file.name: data[file.offset : file.offset + file.length] for file in template.files}
        for i, file in enumerate(template.files):
            self._check_text(hashlib.sha256(files[file.name]).hexdigest(), file.sha256, f"[{index}].files[{i}].sha256")
        if files:
            self._check_text(template_digest(files), template.digest, f"[{index}].digest")
        return files

    def _check_text(self, found: str, expected: str, place: str) -> None:
        if found != expected:
            problem = f"expected text with the sha256 {expected}, found {found}"
            raise PlanError(self.path, problem, field=f"$.templates{place}", next_step="compile the model again")

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> PlanFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(path: str | Path) -> PlanFile:
    """Open, decode and verify a plan file. Reads no weight and runs nothing. Raises PlanError, InputError."""
    return PlanFile(Path(path))


def save(
    path: str | Path, plan: Plan, *, debug: DebugMap | None = None, sections: Mapping[str, bytes] | None = None
) -> None:
    """Verify and write a plan with its other sections; the file appears whole or not at all.

    The same plan gives the same bytes. Raises PlanError for a plan that would not load, InputError for a path that
    cannot be written."""
    path = Path(path)
    parts = dict(sections or {})
    plan, parts["plan"] = _canonical(plan, path)
    verify(plan, {kind: len(data) for kind, data in parts.items()}, path)
    if debug is not None:
        debug, parts["debug"] = _canonical(debug, path)
        verify_debug(debug, plan, path)
    container.write(path, parts)


def encode(record: Plan | DebugMap) -> bytes:
    """msgpack, maps with field names, defaults left out, map keys in sorted order."""
    return msgspec.msgpack.encode(record, order="deterministic")


def decode(data: bytes, kind: type[_T], path: Path) -> _T:
    """Build `kind` from msgpack bytes. Raises PlanError that names the place inside."""
    field = _section(kind)
    _walk(data, field, path)
    record = _build(data, kind, field, path)
    again = encode(record)
    if again != data:
        raise PlanError(
            path,
            f"expected the one spelling of this plan, found another from byte {_first_difference(data, again)}",
            field=field,
            next_step="compile the model again",
        )
    return record


def _first_difference(one: bytes, other: bytes) -> int:
    """The length of what both begin with, found by halving."""
    first, second = memoryview(one), memoryview(other)
    same, differ = 0, max(len(one), len(other))
    while differ - same > 1:
        middle = (same + differ) // 2
        same, differ = (middle, differ) if first[:middle] == second[:middle] else (same, middle)
    return same


def _canonical(record: _T, path: Path) -> tuple[_T, bytes]:
    """The record as a reader will see it (an integer given for a float is one), and its bytes."""
    kind = type(record)
    seen = _build(encode(record), kind, _section(kind), path)
    return seen, encode(seen)


def _section(kind: type[Plan | DebugMap]) -> str:
    return f"section {'plan' if kind is Plan else 'debug'}"


def _build(data: bytes, kind: type[_T], field: str, path: Path) -> _T:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise PlanError(path, _tame(str(error)), field=field, next_step="compile the model again") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(path, f"expected msgpack, found {error}", field=field) from None


def _tame(message: str) -> str:
    """What msgspec says quotes the plan: shortened in the middle, control characters spelt out."""
    kept = message if len(message) <= 400 else f"{message[:150]}...{message[-200:]}"
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in kept)


def _walk(data: bytes, field: str, path: Path) -> None:
    """Read over the bytes without building objects: every claimed length must be there, nesting is bounded."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(data) or 1)
    unpacker.feed(data)
    try:
        unpacker.skip()
    except Exception as error:
        raise PlanError(path, f"expected msgpack, found {type(error).__name__}", field=field) from None
    if unpacker.tell() != len(data):
        raise PlanError(path, f"expected {unpacker.tell()} bytes, found {len(data)}", field=field)
