"""What do the runtime and the process that builds kernels for it say to each other?

A request is one line of JSON. An answer is a length (4 bytes, little-endian) and that many bytes of msgpack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import msgspec

from hjgc.plan_format.structs import ParameterKind, Plan

LENGTH_BYTES = 4
WORKER = "hjgc.compiler.build_worker"
"""The module that such a process runs."""

Fault = Literal["compile", "template", "extra"]
"""Why a build was refused: the compiler's words; no template with that text is installed; what it needs is missing."""


class BuildRequest(msgspec.Struct, frozen=True):
    """Which variant is wanted. With a `digest` only from a template of that text."""

    template: str
    axes: dict[str, bool | int | str]
    target: str
    digest: str | None = None


class BuildRefusal(msgspec.Struct, frozen=True):
    """The parts of the CompileError that the build raised."""

    place: str
    problem: str
    field: str | None = None
    next_step: str | None = None
    fault: Fault = "compile"

    def __str__(self) -> str:
        field, then = (f": {self.field}" if self.field else ""), (f"; {self.next_step}" if self.next_step else "")
        return f"{self.place}{field}: {self.problem}{then}"


class BuiltVariant(msgspec.Struct, frozen=True):
    """One variant, built: what a plan's Variant and BuiltCode say of it, and the code itself."""

    entry: str
    parameters: tuple[ParameterKind, ...]
    threads: int
    shared_bytes: int
    pdl: bool
    registers: int | None
    code: bytes


class BuildAnswer(msgspec.Struct, frozen=True):
    """One of the two."""

    built: BuiltVariant | None = None
    refusal: BuildRefusal | None = None


def build_request(plan: Plan, index: int) -> BuildRequest:
    """What to ask for `plan.variants[index]`."""
    variant = plan.variants[index]
    template = plan.templates[variant.template]
    return BuildRequest(template.name, variant.axes, variant.target, template.digest)


def template_digest(files: Mapping[str, bytes]) -> str:
    """sha256 of a template's files, in the order of their names: of each its name, its length, its text."""
    total = hashlib.sha256()
    for name, text in sorted(files.items()):
        total.update(f"{name}:{len(text)}:".encode() + text)
    return total.hexdigest()
