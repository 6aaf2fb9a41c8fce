"""Do the inputs of a call fit the plan, and which sizes do they have?

Looking at everything takes tens of microseconds, so what was found is remembered for arrays that look the same: of the
same names, types and shapes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from hjgc.plan_format.errors import RunError
from hjgc.plan_format.sizes import Size, evaluate, spell
from hjgc.plan_format.structs import Phase, Port
from hjgc.runtime.arguments import argument, shape_text
from hjgc.runtime.backend import Value

REMEMBERED = 64
Look = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]


class CallInputs:
    """Checks what the calls of one phase are given. From any thread."""

    def __init__(self, phase: Phase) -> None:
        self._phase = phase
        self._ports = {port.name: port for port in phase.arguments}
        self._in_buffers = [port for port in phase.arguments if port.space == "buffer"]
        self._names = tuple(self._ports)
        self._known: OrderedDict[Look, tuple[int, ...]] = OrderedDict()

    def check(self, inputs: Mapping[str, Any]) -> tuple[tuple[int, ...], list[Value]]:
        """The sizes of the call, in the phase's order, and its arguments, in theirs. Raises RunError that names the
        first that does not fit."""
        inputs = _by_name(inputs)
        look = self._look(inputs)
        rows = None if look is None else self._known.get(look)
        if rows is not None:
            return rows, [inputs[name] for name in self._names]
        given = self._checked(inputs)
        rows = self._bind(given)
        if look is not None and all(given[name].dtype == dtype for name, dtype, _ in look):
            self._remember(look, rows)
        return rows, list(given.values())

    def _look(self, inputs: Mapping[str, Any]) -> Look | None:
        """What decides whether the inputs fit; None where that is more than names, types and shapes of arrays."""
        if len(self._in_buffers) != len(self._ports) or not all(type(array) is np.ndarray for array in inputs.values()):
            return None
        return tuple((name, array.dtype, array.shape) for name, array in inputs.items())

    def _remember(self, look: Look, rows: tuple[int, ...]) -> None:
        self._known[look] = rows
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def _checked(self, inputs: Mapping[str, Any]) -> dict[str, Value]:
        """Arrays of the right types, by name. Raises RunError that names the first that is not."""
        unknown = next((name for name in inputs if name not in self._ports), None)
        if unknown is not None:
            names = ", ".join(map(repr, self._ports)) or "none"
            raise RunError(f"expected inputs among {names}, found {unknown!r}")
        return {name: argument(port, inputs.get(name)) for name, port in self._ports.items()}

    def _bind(self, given: Mapping[str, Value]) -> tuple[int, ...]:
        """The sizes that these inputs have. Raises RunError where they disagree."""
        found: dict[str, int] = {}
        shapes = [(port, np.shape(given[port.name])) for port in self._ports.values() if _is_shaped(port, given)]
        for port, shape in shapes:
            if len(shape) != len(port.shape or ()):
                wanted = shape_text(port.shape)
                raise RunError(f"input {port.name!r}: expected {wanted}, found {list(shape)}")
            for axis, size in zip(port.shape or (), shape, strict=True):
                if isinstance(axis, Size):
                    found.setdefault(axis.name, size)
        self._check_ranges(found)
        for port, shape in shapes:
            _check_shape(port, shape, found)
        return tuple(found.get(size.name, size.low) for size in self._phase.sizes)

    def _check_ranges(self, found: Mapping[str, int]) -> None:
        for size in self._phase.sizes:
            value = found.get(size.name, size.low)
            if not size.low <= value <= size.high:
                raise RunError(
                    f"expected {size.name} of {size.low} to {size.high}, found {value}; compile again with "
                    f"--size {size.name}={min(size.low, value)}:{max(size.high, value)}"
                )


def _by_name(inputs: Any) -> Mapping[str, Any]:
    """Raises RunError for what is no mapping."""
    if not isinstance(inputs, Mapping):
        raise RunError(f"expected inputs by name, {{name: array}}, found {type(inputs).__name__}")
    return cast(Mapping[str, Any], inputs)


def _is_shaped(port: Port, given: Mapping[str, Value]) -> bool:
    """Is a tensor given whose axes the plan declares? A list is none, nor is an optional that is left out."""
    return port.shape is not None and isinstance(given[port.name], np.ndarray)


def _check_shape(port: Port, shape: tuple[int, ...], sizes: Mapping[str, int]) -> None:
    for axis, size in zip(port.shape or (), shape, strict=True):
        try:
            wanted = size if axis is None else evaluate(axis, sizes)
        except KeyError:
            continue  # a size that no input has by itself
        if wanted != size:
            named = "" if isinstance(axis, int) or axis is None else f" ({spell(axis)} = {wanted})"
            problem = f"expected {shape_text(port.shape)}{named}, found {list(shape)}"
            raise RunError(f"input {port.name!r}: {problem}")
