"""What does an op declare, so that plans can be checked, costed and run without knowing which op it is?

A role's shape is written in letters: `M H` has two axes. A letter stands for one size throughout a launch; an axis may
also be a number. Letters are bound by the operands themselves, so a check is one walk over the operands. Two letters
mean the same in every op: `M`, the rows of this call, and `V`, the vocabulary. All but `M` are plain numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from hjgc.plan_format.sizes import Expression, spell

DTypeRole = Literal["compute", "weights", "cache", "logits", "float32", "int32", "parameters"]
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
    function of the caller's: always `callback`, or, where that is empty, the one that the launch names."""

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

    def role(self, name: str) -> Role | None:
        """The role of that name, or None."""
        return self._by_name.get(name)

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
