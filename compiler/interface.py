"""Which input of a decoder's graph is what? Token ids, positions, masks and caches, by name and shape, as exporters
name them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hjgc.compiler.errors import NoDecoder
from hjgc.compiler.rules.rule import FLOATS

Array = NDArray[Any]
Role = Literal["key", "value"]
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
PAST_LENGTHS = ("past_sequence_length", "past_seq_len", "cumulative_length", "past_length", "cache_length")
TOTAL_LENGTHS = ("total_sequence_length", "total_seq_len")


ROOM = 3
"""Rows of a cache beyond those needed, where the graph leaves open how many there are."""


@dataclass(frozen=True)
class Sizes:
    """How many tokens the cache holds, how many are new, and of how many sequences."""

    past: int
    new: int
    batch: int = 1

    @property
    def total(self) -> int:
        return self.past + self.new


@dataclass(frozen=True)
class Slot:
    """One of a layer's two caches."""

    layer: int
    role: Role


@dataclass
class Interface:
    """The graph's inputs and outputs by meaning. `others` are inputs whose numbers follow from the sizes alone,
    positions and masks among them."""

    ids: ir.Value
    logits: ir.Value
    caches: dict[ir.Value, Slot] = field(default_factory=dict[ir.Value, Slot])
    presents: dict[ir.Value, Slot] = field(default_factory=dict[ir.Value, Slot])
    others: tuple[ir.Value, ...] = ()

    def known(self, sizes: Sizes) -> dict[ir.Value, Array]:
        """What the graph is given at these sizes, but for token ids and caches: a prompt without padding."""
        found = {value: _given(value, sizes, self._width(value, sizes)) for value in self.others}
        return {value: array for value, array in found.items() if array is not None}

    def rows(self, cache: ir.Value, sizes: Sizes) -> int:
        """How many rows of a cache the graph is given: as many as it holds, or some room for more where it gives back
        as many as it takes."""
        axis = _axis(cache, 2)
        if axis is not None:
            return axis
        return sizes.total + ROOM if self._has_room(cache) else sizes.past

    def most_tokens(self) -> int | None:
        """The most tokens that the graph's caches hold, where their size is fixed and they give back as many rows as
        they take; None where nothing bounds them."""
        given_out = {slot: value for value, slot in self.presents.items()}
        pairs = [(_axis(cache, 2), given_out.get(slot)) for cache, slot in self.caches.items()]
        fixed = ((rows, present) for rows, present in pairs if rows is not None and present is not None)
        held = (rows for rows, present in fixed if _axis(present, 2) == rows)
        return min(held, default=None)

    def _has_room(self, cache: ir.Value) -> bool:
        present = next((value for value, slot in self.presents.items() if slot == self.caches[cache]), None)
        if present is None or present.shape is None or cache.shape is None:
            return False
        return cache.shape[2] == present.shape[2] and _name(cache, 2) is not None

    def _width(self, mask: ir.Value, sizes: Sizes) -> int:
        """Columns of a mask over queries and keys: as many as there are keys, or as a cache has rows."""
        axis = _axis(mask, 3)
        if axis is not None:
            return axis
        alike = (cache for cache in self.caches if _name(cache, 2) == _name(mask, 3) and self._has_room(cache))
        return next((self.rows(cache, sizes) for cache in alike), sizes.total)

    def possible(self, wanted: Sizes) -> Sizes | None:
        """The sizes nearest to these that the graph takes: some files fix them. None if these are too long for it."""
        past, new = wanted.past, wanted.new
        batch, fixed = _axis(self.ids, 0) or 1, _axis(self.ids, 1)
        new = new if fixed is None else fixed
        for cache, slot in self.caches.items():
            rows = _axis(cache, 2)
            present = next((value for value, own in self.presents.items() if own == slot), None)
            if rows is not None and present is not None and not self._has_room(cache) and _axis(present, 2) != rows:
                past = rows
            elif rows is not None and past + new > rows:
                return None
        return Sizes(past, new, batch)


def read_interface(model: ir.Model, path: Path) -> Interface:
    """Raises CompileError for a graph that takes no token ids, or gives no logits."""
    graph = model.graph
    inputs = [value for value in graph.inputs if not value.is_initializer()]
    ids = _one(inputs, "input_ids")
    logits = _one(graph.outputs, "logits")
    if ids is None or logits is None:
        names = ", ".join(sorted(str(value.name) for value in (*inputs, *graph.outputs))[:6]) or "none"
        problem = f"expected a decoder with input_ids and logits, found {names}"
        missing = "input_ids" if ids is None else "logits"
        raise NoDecoder(path, problem, field=missing, next_step="export it with `hjgc export`")
    caches = {value: slot for value in inputs if (slot := cache_slot(value)) is not None}
    presents = {value: slot for value in graph.outputs if (slot := cache_slot(value)) is not None}
    others = tuple(value for value in inputs if value is not ids and value not in caches)
    return Interface(ids, logits, caches, presents, others)


def cache_slot(value: ir.Value) -> Slot | None:
    """Layer and role from a name such as `past_key_values.3.key`, `present_value_3`,
    `output.past_key_values.layers.3.keys`."""
    name = (value.name or "").lower()
    if not re.search(r"past|present|cache", name) or value.dtype not in FLOATS:
        return None
    numbers = re.findall(r"\d+", name)
    words = re.sub(r"key_values?", "", name)
    role = re.search(r"key|value", words)
    if not numbers or role is None:
        return None
    return Slot(int(numbers[-1]), "key" if role.group() == "key" else "value")


def _one(values: Any, name: str) -> ir.Value | None:
    """The value of this name, or the only one whose name ends with it."""
    exact = [value for value in values if value.name == name]
    near = [value for value in values if (value.name or "").endswith(name)]
    found = exact or near
    return found[0] if len(found) == 1 else None


def _axis(value: ir.Value, axis: int) -> int | None:
    """A dimension that is a number, also where an exporter wrote it as a name: "8"."""
    if value.shape is None or len(value.shape) <= axis:
        return None
    return dimension(value.shape[axis])


def _name(value: ir.Value, axis: int) -> str | None:
    """The symbol of a dimension that is no number."""
    if value.shape is None or len(value.shape) <= axis:
        return None
    found = value.shape[axis]
    return None if isinstance(found, int) else found.value


def dimension(axis: int | ir.SymbolicDim) -> int | None:
    if isinstance(axis, int):
        return axis
    text = axis.value
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _given(value: ir.Value, sizes: Sizes, width: int) -> Array | None:
    """The numbers of an input that follow from the sizes; None if its name says nothing. `width`: of a mask over
    keys."""
    name, rank = value.name or "", None if value.shape is None else len(value.shape)
    if "position_ids" in name or "cache_position" in name:
        positions = np.arange(sizes.past, sizes.total, dtype=np.int64)
        return positions if rank == 1 else np.tile(positions, (sizes.batch, 1))
    if name == "use_cache_branch":
        return np.ones((1,) * (rank or 0), np.bool_)
    if "mask" in name:
        return _mask(value, rank, sizes, width)
    scalars = dict.fromkeys(PAST_LENGTHS, sizes.past) | dict.fromkeys(TOTAL_LENGTHS, sizes.total)
    count = next((number for ending, number in scalars.items() if name.endswith(ending)), None)
    if count is not None and value.dtype is not None and value.dtype in INTEGERS:
        return np.full((1,) * (rank or 0), count, value.dtype.numpy())
    return None


def _mask(value: ir.Value, rank: int | None, sizes: Sizes, width: int) -> Array | None:
    """Ones for a mask of tokens; for a mask of [.., queries, keys] the causal one."""
    if rank == 2 and value.dtype is not None:
        return np.ones((sizes.batch, sizes.total), value.dtype.numpy())
    if rank != 4 or value.dtype is None:
        return None
    seen = np.arange(width)[None, :] <= np.arange(sizes.past, sizes.total)[:, None]
    seen = np.tile(seen, (sizes.batch, 1, 1, 1))
    if value.dtype == ir.DataType.BOOL:
        return seen
    return np.where(seen, np.float32(0), np.finfo(np.float32).min) if value.dtype in FLOATS else None


def unknown_inputs(interface: Interface) -> Iterator[ir.Value]:
    """Inputs of which nobody can say what a plan should give them."""
    known = interface.known(Sizes(1, 1))
    yield from (value for value in interface.others if value not in known and not is_handed_on(value))


def is_handed_on(value: ir.Value) -> bool:
    """An input that the graph does nothing with, but for giving it out again."""
    users = [user for user, _ in value.uses()]
    return all(user.op_type == "Identity" and user.outputs[0].is_graph_output() for user in users)
