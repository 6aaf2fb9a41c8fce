"""By which angles does a region turn its heads? Found where it takes cosines, or in its tables of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from hjgc.compiler.attention.evaluate import Evaluator, Unknown
from hjgc.compiler.interface import Array, Sizes

ROUNDING = {ir.DataType.FLOAT: 1e-5, ir.DataType.FLOAT16: 2e-3, ir.DataType.BFLOAT16: 2e-2}
"""How far an entry of a table may be from the cosine that it stands for."""


def frequencies(
    evaluator: Evaluator, nodes: Iterable[ir.Node], size: int, given: Mapping[ir.Value, Array], sizes: Sizes
) -> Iterator[Array]:
    """Candidates: float32 [size / 2], radians a position. `given` and `sizes` are what the region can be run with."""
    nodes = list(nodes)
    found: dict[bytes, Array] = {}
    for candidate in (*_of_angles(evaluator, nodes, given, sizes), *_of_tables(evaluator, nodes)):
        numbers = _half(candidate, size)
        if numbers is not None:
            found.setdefault(numbers.tobytes(), numbers)
    yield from found.values()


def _half(numbers: Array, size: int) -> Array | None:
    """The first half, where the second repeats it."""
    numbers = np.ascontiguousarray(numbers.reshape(-1), dtype=np.float32)
    if len(numbers) == size and np.array_equal(numbers[: size // 2], numbers[size // 2 :]):
        numbers = numbers[: size // 2].copy()
    return numbers if len(numbers) == size // 2 else None


def _of_angles(
    evaluator: Evaluator, nodes: list[ir.Node], given: Mapping[ir.Value, Array], sizes: Sizes
) -> Iterator[Array]:
    """What the cosine is taken of, over the position: as it is at position 1, if that is among them."""
    for node in nodes:
        if node.op_type != "Cos" or node.domain != "" or node.inputs[0] is None:
            continue
        try:
            (angles,) = evaluator.run([node.inputs[0]], given, sizes)
        except Unknown:
            continue
        row = 0 if sizes.past else 1
        for axis in range(angles.ndim):
            if angles.shape[axis] == sizes.new > row:
                rows = np.moveaxis(angles, axis, -2 if axis < angles.ndim - 1 else 0)
                rows = rows.reshape(-1, *rows.shape[-2:])[0] if rows.ndim > 2 and axis < angles.ndim - 1 else rows
                yield rows.reshape(sizes.new, -1)[row] / np.float32(sizes.past + row)


def _of_tables(evaluator: Evaluator, nodes: list[ir.Node]) -> Iterator[Array]:
    """The angles of two tables [positions, size / 2 or size] whose rows are cosines and sines of multiples of one
    row."""
    tables = {value: None for node in nodes for value in node.inputs if value is not None and may_be_table(value)}
    arrays = [evaluator.run([value], {}, Sizes(0, 1))[0] for value in tables]
    kinds = [value.const_value.dtype for value in tables if value.const_value is not None]
    cosines = [(array, kind) for array, kind in zip(arrays, kinds, strict=True) if np.allclose(array[0], 1.0)]
    sines = [array for array in arrays if not array[0].any()]
    for cos, kind in cosines:
        for sin in sines:
            if cos.shape == sin.shape and (fitted := _fit(cos, sin, ROUNDING[kind])) is not None:
                yield fitted


def may_be_table(value: ir.Value) -> bool:
    """A constant [positions, numbers] of floats."""
    tensor = value.const_value
    if tensor is None or not value.is_initializer() or len(tensor.shape) != 2:
        return False
    return tensor.dtype in ROUNDING and int(tensor.shape.numpy()[0]) > 2


def _fit(cos: Array, sin: Array, rounding: float) -> Array | None:
    """Frequencies from the angle at position 1, made better at 2, 4, 8, ... where the error of an entry counts less;
    None if the tables are not of their multiples."""
    angle = np.arctan2(sin[1].astype(np.float64), cos[1].astype(np.float64))
    position = 2
    while position < len(cos):
        seen = np.arctan2(sin[position].astype(np.float64), cos[position].astype(np.float64))
        turns = np.round((angle * position - seen) / (2 * np.pi))
        angle = (seen + 2 * np.pi * turns) / position
        position *= 2
    numbers = angle.astype(np.float32)
    some = np.unique(np.linspace(0, len(cos) - 1, 257).astype(np.int64))
    angles = some[:, None].astype(np.float32) * numbers
    largest = float(some[-1]) * float(np.abs(numbers).max()) * 2.0**-22
    near = all(
        np.allclose(table[some], of(angles), rtol=0, atol=rounding + largest)
        for table, of in ((cos, np.cos), (sin, np.sin))
    )
    return numbers if near else None
