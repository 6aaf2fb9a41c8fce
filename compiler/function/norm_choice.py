"""Which kernel normalises rows?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hjgc.compiler.function.choice import Limits, chooses, grid_blocks, inputs
from hjgc.compiler.function.patterns import beside_axes, pattern
from hjgc.compiler.kernels.declaration import ABSENT, DTYPES, AxisValue
from hjgc.compiler.kernels.prefill_choice import Choice
from hjgc.compiler.kernels.tiles import NoTemplate
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.chips import has_pdl
from hjgc.plan_format.sizes import Expression

MOST_COLUMNS = 1 << 16


@chooses("layer_norm")
def choose_layer_norm(step: Step, target: str, limits: Limits) -> Choice:
    x, *affine = inputs(step)
    assert x is not None and isinstance(step.attributes["axis"], int), "as the op declares it"
    if len(step.operands) - len(inputs(step)) + affine.count(None) > 1:
        raise NoTemplate("no kernel gives the mean and the deviation of a norm")
    axis = step.attributes["axis"] % len(x.shape)
    del limits
    found = _choice(step, target, x.shape[:axis], x.shape[axis:], affine, [x], "x2", parts=0)
    return replace(found, roles={"x2": "x0", "x0": "x1", "x1": "x2"})


@chooses("norm_map")
def choose_norm_map(step: Step, target: str, limits: Limits) -> Choice:
    del limits
    gain, bias, *others = inputs(step)
    shape = step.operands["y0"].shape
    beside = [tensor for tensor in others if tensor is not None]
    parts = beside[0].shape[0] if step.attributes["parts"] else 0
    assert isinstance(parts, int), "as the op declares it"
    if parts and beside[0].shape[1:] != shape:
        raise NoTemplate("expected parts of the norm's own shape")
    expression = str(step.attributes["expression"])
    return _choice(step, target, shape[:-1], shape[-1:], [gain, bias], beside, expression, parts=parts)


def _choice(
    step: Step,
    target: str,
    lines: Sequence[Expression],
    axes_of_norm: Sequence[Expression],
    affine: Sequence[Tensor | None],
    beside: Sequence[Tensor],
    expression: str,
    *,
    parts: int,
) -> Choice:
    dtype = step.operands["y0"].dtype
    columns, rows = dims.product(axes_of_norm), dims.product(lines)
    if not isinstance(columns, int) or not 1 <= columns <= MOST_COLUMNS or dtype not in DTYPES:
        raise NoTemplate(f"expected rows of 1 to {MOST_COLUMNS} numbers of {', '.join(DTYPES)}")
    groups = ((), tuple(lines), tuple(axes_of_norm))
    gain, bias = (*affine, None, None)[:2]
    summed = [_without_parts(beside[0]), *beside[1:]] if parts else beside
    axes: dict[str, AxisValue] = {
        "columns": columns,
        "dtype": dtype,
        "second": "y1" in step.operands,
        "parts": parts,
        "center": bool(step.attributes["center"]),
        "expression": expression,
        **beside_axes(summed, groups),
        "x0": _affine(gain, groups),
        "x1": _affine(bias, groups),
        "warps": 1 if columns <= 128 else 2 if columns <= 512 else 4 if columns <= 2048 else 8,
        "pdl": has_pdl(target),
    }
    return Choice("tensor_norm", axes, {"rows": rows, "programs": grid_blocks(rows, 1)})


def _without_parts(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.space, tensor.dtype, tensor.shape[1:], tensor.index, tensor.base)


def _affine(tensor: Tensor | None, groups: tuple[Sequence[Expression], ...]) -> str:
    """The type of a gain or a bias, which every row has alike."""
    if tensor is None:
        return ABSENT
    if pattern(tensor.shape, groups) != 1:  # type: ignore[arg-type] (three of them)
        raise NoTemplate("expected a gain and a bias of the norm's own axes")
    return tensor.dtype
