"""Which ONNX nodes only move elements: shapes, orders, parts, joins?"""

from __future__ import annotations

from collections.abc import Sequence

from hjgc.compiler.function.contents import elements
from hjgc.compiler.function.lowering import Lowering, NotNative, lowers
from hjgc.compiler.kernels.tiles_of_functions import MOST_OPERANDS
from hjgc.compiler.program import Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.ops.declaration import TensorType
from hjgc.plan_format.ops.shapes import axes_of, axis_of
from hjgc.plan_format.sizes import Expression


@lowers("Reshape")
def _reshape(node: Lowering) -> None:
    x = node.x(0)
    wanted = node.sizes(1) if node.has(1) else node.integers("shape") or ()
    node.give(node.view(x, resolved(node, x, wanted)))


def resolved(node: Lowering, x: Tensor, wanted: Sequence[Expression]) -> tuple[Expression, ...]:
    """0 is the operand's own axis, -1 what is left."""
    keep = not node.integer("allowzero", 0)
    if keep and any(axis == 0 and i >= len(x.shape) for i, axis in enumerate(wanted)):
        raise ValueError("expected a 0 for an axis that the operand has, found one past its last")
    shape = [x.shape[i] if axis == 0 and keep else axis for i, axis in enumerate(wanted)]
    if -1 in shape:
        rest = dims.product(axis for axis in shape if axis != -1)
        left = dims.divide(dims.product(x.shape), rest)
        if left is None:
            raise ValueError("expected a size that follows from the others, found one that may not")
        shape[shape.index(-1)] = left
    return tuple(shape)


@lowers("Flatten")
def _flatten(node: Lowering) -> None:
    x = node.x(0)
    axis = node.integer("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    node.give(node.view(x, (dims.product(x.shape[:axis]), dims.product(x.shape[axis:]))))


@lowers("Squeeze")
def _squeeze(node: Lowering) -> None:
    x = node.x(0)
    found = node.ints_or(1, "axes")
    if found is None and any(not isinstance(axis, int) and _may_be_one(node, axis) for axis in x.shape):
        raise node.refuse("which axes are 1 is not known beforehand")
    axes = axes_of(found, len(x.shape)) if found is not None else [i for i, axis in enumerate(x.shape) if axis == 1]
    node.give(node.view(x, [axis for i, axis in enumerate(x.shape) if i not in axes]))


def _may_be_one(node: Lowering, axis: Expression) -> bool:
    low, high = node.context.limits(axis)
    return low <= 1 <= high


@lowers("Unsqueeze")
def _unsqueeze(node: Lowering) -> None:
    x = node.x(0)
    found = node.ints_or(1, "axes") or ()
    axes = axes_of(found, len(x.shape) + len(found))
    rest = iter(x.shape)
    node.give(node.view(x, [1 if i in axes else next(rest) for i in range(len(x.shape) + len(axes))]))


@lowers("Transpose")
def _transpose(node: Lowering) -> None:
    x = node.x(0)
    axes = node.integers("perm") or tuple(range(len(x.shape)))[::-1]
    node.give(node.emit("transpose", [x], {"axes": tuple(axis % len(x.shape) for axis in axes)}))


@lowers("Concat")
def _concat(node: Lowering) -> None:
    """For a GPU as many at a time as a kernel takes."""
    parts, attributes = [node.x(i) for i in range(node.count)], {"axis": node.integer("axis", 1)}
    most = MOST_OPERANDS if node.context.targets else len(parts)
    while len(parts) > most:
        groups = [parts[i : i + most] for i in range(0, len(parts), most)]
        parts = [node.emit("concat", group, attributes) if len(group) > 1 else group[0] for group in groups]
    node.give(node.emit("concat", parts, attributes))


@lowers("Slice")
def _slice(node: Lowering) -> None:
    x = node.x(0)
    starts = node.sizes(1) if node.has(1) else node.integers("starts") or ()
    ends = node.sizes(2) if node.has(2) else node.integers("ends") or ()
    axes = node.ints_or(3, "axes") or tuple(range(len(starts)))
    steps = node.ints_or(4, "steps") or (1,) * len(starts)
    first, strides, shape = [0] * len(x.shape), [1] * len(x.shape), list(x.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = axis_of(axis, len(x.shape))
        first[place], shape[place] = _part(node, x.shape[place], start, end, step)
        strides[place] = step
    node.give(cut(node, x, first, strides, shape))


def cut(node: Lowering, x: Tensor, starts: Sequence[int], steps: Sequence[int], shape: Sequence[Expression]) -> Tensor:
    """A slice that stands for a launch only where it leaves something out."""
    if tuple(shape) == tuple(x.shape) and all(step == 1 for step in steps):
        return node.elementwise("x0", x)
    attributes = {"starts": tuple(starts), "steps": tuple(steps)}
    return node.emit("slice", [x], attributes, [TensorType(x.dtype, tuple(map(dims.canonical, shape)))])


def _part(node: Lowering, axis: Expression, start: Expression, end: Expression, step: int) -> tuple[int, Expression]:
    """Where it begins and how many there are. Raises ValueError where that depends on a size in another way than by
    taking some off either end, or where a size may lie outside of the axis."""
    if isinstance(axis, int) and isinstance(start, int) and isinstance(end, int):
        found = elements(axis, start, end, step)
        return (found[0] if len(found) else 0), len(found)
    if not isinstance(start, int) or step != 1:
        raise ValueError("expected a slice from a number on, in steps of 1, along an axis without a fixed size")
    if start < 0:
        whole = isinstance(end, int) and end >= 1 << 31
        if not whole or node.context.limits(axis)[0] < -start:
            raise ValueError("expected as many elements as are taken from the end, found an axis that may have fewer")
        return start, -start
    if isinstance(end, int) and end >= 1 << 31:
        return start, dims.sub(axis, start)
    if isinstance(end, int) and end < 0:
        return start, dims.sub(dims.add(axis, end), start)
    if dims.canonical(end) == dims.canonical(axis):
        return start, dims.sub(axis, start)
    if isinstance(axis, int) and not isinstance(end, int):
        low, high = node.context.limits(end)
        if start <= low and high <= axis:
            return start, dims.sub(end, start)
    raise ValueError("expected an end that is the axis's, or counted from it")


@lowers("Split")
def _split(node: Lowering) -> None:
    x = node.x(0)
    axis, count = axis_of(node.integer("axis", 0), len(x.shape)), len(node.node.outputs)
    sizes = _split_sizes(node, x.shape[axis], count)
    place = 0
    for index, size in enumerate(sizes):
        starts = [place if i == axis else 0 for i in range(len(x.shape))]
        shape = [size if i == axis else old for i, old in enumerate(x.shape)]
        if node.wants(index):
            node.give(cut(node, x, starts, [1] * len(starts), shape), index)
        place += size


def _split_sizes(node: Lowering, axis: Expression, count: int) -> tuple[int, ...]:
    found = node.ints_or(1, "split")
    if found is not None:
        if sum(found) != axis:
            raise ValueError(f"expected parts of {axis} in all, found {found}")
        return found
    if not isinstance(axis, int):
        raise ValueError("expected an axis of a fixed size to be split evenly")
    count = node.integer("num_outputs", count)
    each = -(-axis // count)
    return tuple(min(each, axis - each * i) for i in range(count))


@lowers("Gather")
def _gather(node: Lowering) -> None:
    """One place that is known is a slice: where it lies can be seen. Not of a result, which is no view."""
    x, indices = node.x(0), node.x(1)
    axis, place = axis_of(node.integer("axis", 0), len(x.shape)), _known_place(node)
    size = x.shape[axis]
    if place is None or not isinstance(size, int) or not -size <= place < size or _is_result(node):
        return node.give(node.emit("gather", [x, indices], {"axis": node.integer("axis", 0)}))
    starts = [place % size if i == axis else 0 for i in range(len(x.shape))]
    found = cut(node, x, starts, [1] * len(starts), [*x.shape[:axis], 1, *x.shape[axis + 1 :]])
    node.give(node.view(found, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])))


def _is_result(node: Lowering) -> bool:
    return node.node.outputs[0].is_graph_output()


def _known_place(node: Lowering) -> int | None:
    """The one index of a Gather, if there is one and it is known."""
    try:
        places = node.ints(1)
    except NotNative:
        return None
    return places[0] if len(places) == 1 else None


@lowers("DepthToSpace", "SpaceToDepth")
def _blocks(node: Lowering) -> None:
    """Blocks of pixels become channels, or the other way round."""
    x, size = node.x(0), node.integer("blocksize", 1)
    batch, channels, height, width = x.shape
    if node.node.op_type == "SpaceToDepth":
        height, width = _whole(height, size), _whole(width, size)
        parts = node.view(x, (batch, channels, height, size, width, size))
        axes = (0, 1, 3, 5, 2, 4) if node.text("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
        moved = node.emit("transpose", [parts], {"axes": axes})
        node.give(node.view(moved, (batch, dims.mul(channels, size * size), height, width)))
        return
    channels = _whole(channels, size * size)
    columns = node.text("mode", "DCR") == "DCR"
    split = (batch, size, size, channels) if columns else (batch, channels, size, size)
    parts = node.view(x, (*split, height, width))
    axes = (0, 3, 4, 1, 5, 2) if columns else (0, 1, 4, 2, 5, 3)
    moved = node.emit("transpose", [parts], {"axes": axes})
    node.give(node.view(moved, (batch, channels, dims.mul(height, size), dims.mul(width, size))))


def _whole(axis: Expression, size: int) -> Expression:
    found = dims.divide(axis, size)
    if found is None:
        raise ValueError(f"expected a multiple of {size}, found {axis}")
    return found
