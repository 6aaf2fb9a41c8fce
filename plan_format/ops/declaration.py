"""What does an op declare, so that plans can be checked, costed and run without knowing which op it is?

A role's shape is written in letters: `M H` has two axes. A letter stands for one size throughout a launch; an axis may
also be a number. Letters are bound by the operands themselves, so a check is one walk over the operands. Two letters
mean the same in every op: `M`, the rows of this call, and `V`, the vocabulary. All but `M` are plain numbers.

A **tensor op** takes operands of any rank and type: `x0`, `x1`, ... are read, `y0`, `y1`, ... written, and what may be
left out is absent. It declares what it writes as a function of what it reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.sizes import Expression, spell

DTypeRole = Literal["compute", "weights", "cache", "logits", "float32", "int32", "parameters", "any"]
Dims = Mapping[str, int]

LOGITS_PROCESSOR = "logits_processor"
"""The function that a caller passes with one request; all others are passed to the session by name."""
FUNCTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Role:
    """One operand of an op: its name, axes, element type by role, how it is accessed, whether it may be absent, and
    whether it never changes during a session (so that a kernel may load it before its predecessor has finished)."""

    name: str
    axes: tuple[str, ...]
    dtype: DTypeRole
    access: Literal["read", "write", "read_write"]
    optional: bool = False
    constant: bool = False


def read(name: str, axes: str, dtype: DTypeRole = "compute", *, optional: bool = False) -> Role:
    return Role(name, tuple(axes.split()), dtype, "read", optional)


def constant(name: str, axes: str, dtype: DTypeRole = "weights", *, optional: bool = False) -> Role:
    return Role(name, tuple(axes.split()), dtype, "read", optional, constant=True)


def write(name: str, axes: str, dtype: DTypeRole = "compute", *, optional: bool = False) -> Role:
    return Role(name, tuple(axes.split()), dtype, "write", optional)


def update(name: str, axes: str, dtype: DTypeRole, *, optional: bool = False) -> Role:
    return Role(name, tuple(axes.split()), dtype, "read_write", optional)


STATES: Mapping[str, tuple[str, ...]] = {
    "history": ("token_history",),
    "key_cache": ("full_cache", "ring_cache"),
    "value_cache": ("full_cache", "ring_cache"),
    "logits": ("logits",),
    "sampled": ("sampled",),
    "counters": ("counters",),
}
"""Roles that only a state of these kinds can fill: kernels reach into it at places that the parameter block names."""


@dataclass(frozen=True)
class TensorType:
    """What a tensor op sees of an operand at compile time: element type and shape."""

    dtype: DType
    shape: tuple[Expression, ...]

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(spell, self.shape))}]"


Types = Sequence[TensorType | None]
"""Those of `x0`, `x1`, ...; None for one that is left out."""
Infer = Callable[[Types, Sequence[TensorType], Mapping[str, Any]], Sequence[TensorType]]
"""`infer(inputs, outputs, attributes)`: the types that are written, from those that are read. `outputs` are those that
the plan claims, for ops that may choose some of it, such as the shape of a broadcast. Raises ValueError with a sentence
for operands that do not fit."""

TENSOR_ROLE = re.compile(r"[xy](0|[1-9]\d{0,3})")

PARAMETERS = Role("parameters", (), "parameters", "read")
UPDATED_PARAMETERS = Role("parameters", (), "parameters", "read_write")


def no_relations(dims: Dims, attributes: Mapping[str, Any]) -> str | None:
    """The default for ops whose axes are free of each other."""
    del dims, attributes
    return None


@dataclass(frozen=True)
class Op:
    """An op's declaration. `flops(dims)` counts multiply and add as two; `bytes_moved(dims, item)` counts the device
    memory one call must read and write, each byte once; `relations` says what is wrong between axes and attributes, if
    anything. `dims` holds each letter's value, plus `start` (tokens already cached). An op of the `host`'s calls a
    function of the caller's: always `callback`, or, where that is empty, the one that the launch names.

    A tensor op has `infer`, no roles, and `operations(inputs, outputs, attributes)`, of which `inputs` and `outputs`
    are shapes in numbers. Its reference is called with the list of its inputs, the list of its outputs and its
    attributes by name. An op of an `island` is run by ONNX Runtime and has no reference."""

    name: str
    summary: str
    roles: tuple[Role, ...]
    attributes: Mapping[str, type]
    reference: Callable[..., None]
    flops: Callable[[Dims], int]
    bytes_moved: Callable[[Dims, int], int]
    relations: Callable[[Dims, Mapping[str, Any]], str | None] = field(default=no_relations)
    host: bool = False
    callback: str = ""
    infer: Infer | None = None
    operations: Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]], Mapping[str, Any]], int] | None = None
    island: bool = False

    def role(self, name: str) -> Role | None:
        """The role of that name, or None."""
        if self.infer is None:
            return self._by_name.get(name)
        if TENSOR_ROLE.fullmatch(name) is None:
            return None
        return Role(name, (), "any", "read" if name[0] == "x" else "write")

    def ordered(self, names: Iterable[str]) -> list[Role]:
        """The roles of these names, as the op orders them."""
        present = set(names)
        if self.infer is None:
            return [role for role in self.roles if role.name in present]
        order = sorted(present, key=lambda name: (name[0], int(name[1:])))
        return [role for name in order if (role := self.role(name)) is not None]

    @cached_property
    def _by_name(self) -> Mapping[str, Role]:
        return {role.name: role for role in self.roles}


def is_function_name(name: str) -> bool:
    """May a function that is passed to the session be called so?"""
    return FUNCTION_NAME.fullmatch(name) is not None and name != LOGITS_PROCESSOR


def bind_axes(op: Op, shapes: Mapping[str, tuple[Expression, ...]]) -> dict[str, Expression]:
    """Each letter's expression. Raises ValueError with a sentence where two operands disagree."""
    bound: dict[str, Expression] = {}
    for role in op.roles:
        shape = shapes.get(role.name)
        if shape is None or role.dtype == "parameters":
            continue
        if len(shape) != len(role.axes):
            raise ValueError(f"{role.name}: expected {len(role.axes)} axes ({' '.join(role.axes)}), found {len(shape)}")
        for letter, size in zip(role.axes, shape, strict=True):
            known = int(letter) if letter.isdigit() else bound.setdefault(letter, size)
            if known != size:
                raise ValueError(f"{role.name}: expected axis {letter} = {spell(known)}, found {spell(size)}")
    return bound


def tensor_op(
    name: str,
    summary: str,
    attributes: Mapping[str, type],
    infer: Infer,
    reference: Callable[..., None],
    *,
    operations: Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]], Mapping[str, Any]], int] | None = None,
) -> Op:
    """A tensor op; without `operations`, one for each element that it writes."""
    return Op(
        name=name,
        summary=summary,
        roles=(),
        attributes=attributes,
        reference=reference,
        flops=lambda dims: 0,
        bytes_moved=lambda dims, item: 0,
        infer=infer,
        operations=operations,
    )


def split_roles(names: Sequence[str]) -> tuple[int, int]:
    """How many inputs and outputs a tensor op has with these roles: absent inputs count, if a later one is there."""
    inputs = [int(name[1:]) + 1 for name in names if name[0] == "x"]
    outputs = [int(name[1:]) + 1 for name in names if name[0] == "y"]
    return max(inputs, default=0), max(outputs, default=0)
