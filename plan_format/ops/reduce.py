"""Reduce: one number out of all that lie along some axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import axes_of, one

KINDS = ("sum", "mean", "max", "min", "prod", "sum_square", "l1", "l2", "log_sum", "log_sum_exp")
ROOTS = ("mean", "l2", "log_sum", "log_sum_exp")
"""Kinds that give no whole numbers."""


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """The axes stay as 1 where `keep` says so, else they go."""
    del outputs
    x, kind = one(inputs), attributes["kind"]
    if kind not in KINDS or (kind in ROOTS and x.dtype not in FLOATS):
        raise ValueError(f"expected one of {', '.join(KINDS)} of a type that has it, found {kind!r} of {x.dtype}")
    axes = axes_of(attributes["axes"], len(x.shape))
    kept = [(1 if i in axes else axis) for i, axis in enumerate(x.shape) if attributes["keep"] or i not in axes]
    return (TensorType(x.dtype, tuple(kept)),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, kind: str, axes: tuple[int, ...], keep: bool) -> None:
    """Sums of half precision are made in float32."""
    x = inputs[0]
    x = x.float() if x.dtype.is_floating_point and x.dtype.itemsize == 2 else x
    dims = axes_of(axes, x.ndim)
    result = _reduced(x, kind, dims) if dims else _unreduced(x, kind)
    outputs[0].copy_(result.reshape(outputs[0].shape))


def _reduced(x: Any, kind: str, axes: tuple[int, ...]) -> Any:
    import torch

    match kind:
        case "max" | "min":
            return _extreme(torch, x, kind, axes)
        case "prod":
            for axis in reversed(axes):
                x = torch.prod(x, dim=axis, dtype=x.dtype)
            return x
        case "mean":  # of nothing 0, as ONNX Runtime has it
            return torch.sum(x, dim=axes) / max(1, prod(x.shape[axis] for axis in axes))
        case "log_sum_exp":
            return torch.logsumexp(x, dim=axes)
        case "l2":
            return torch.sqrt(torch.sum(x * x, dim=axes))
        case _:
            terms = {"sum_square": x * x, "l1": torch.abs(x)}.get(kind, x)
            total = torch.sum(terms, dim=axes, dtype=x.dtype)
            return torch.log(total) if kind == "log_sum" else total


def _extreme(torch: Any, x: Any, kind: str, axes: tuple[int, ...]) -> Any:
    """Of nothing: the type's own end, as ONNX has it."""
    if any(x.shape[axis] == 0 for axis in axes):
        shape = [size for i, size in enumerate(x.shape) if i not in axes]
        return torch.full(shape, _end(torch, x.dtype, kind), dtype=x.dtype)
    return torch.amax(x, dim=axes) if kind == "max" else torch.amin(x, dim=axes)


def _end(torch: Any, dtype: Any, kind: str) -> float | int | bool:
    if dtype.is_floating_point:
        return float("-inf") if kind == "max" else float("inf")
    if dtype == torch.bool:
        return kind == "min"
    return torch.iinfo(dtype).min if kind == "max" else torch.iinfo(dtype).max


def _unreduced(x: Any, kind: str) -> Any:
    """Along no axis: each element is all there is."""
    import torch

    match kind:
        case "sum_square":
            return x * x
        case "l1" | "l2":
            return torch.abs(x)
        case "log_sum":
            return torch.log(x)
        case _:
            return x


OP = tensor_op(
    "reduce",
    "y0 = the sum, mean, maximum ... of x0 along `axes`",
    {"kind": str, "axes": tuple, "keep": bool},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: prod(inputs[0]),
)
