"""Class loss: what the right classes lack, from the logarithms of all classes' chances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import operands


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [N, C, ...] the logarithms, x1 [N, ...] the right classes, x2 [C] the classes' weights, if there are any. One
    number for each of x1, or the sum or the mean of all."""
    del outputs
    x, target, weight = (*inputs, None, None, None)[:3]
    if x is None or target is None or len(inputs) > 3 or x.dtype not in FLOATS or len(x.shape) < 2:
        raise ValueError(f"expected logarithms of chances and classes, found {x} and {target}")
    if target.dtype not in ("int64", "int32") or target.shape != (x.shape[0], *x.shape[2:]):
        raise ValueError(f"expected a class for each place of {x}, found {target}")
    if weight is not None and weight != TensorType(x.dtype, (x.shape[1],)):
        raise ValueError(f"expected a weight for each class of {x}, found {weight}")
    if attributes["reduction"] not in ("none", "sum", "mean") or len(attributes["ignored"]) > 1:
        raise ValueError(f"expected none, sum or mean and one class to ignore, found {attributes['reduction']!r}")
    return (TensorType(x.dtype, target.shape if attributes["reduction"] == "none" else ()),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, reduction: str, ignored: tuple[int, ...]) -> None:
    """In float32 at least; the mean is that of what counts, weighed. Raises IndexError for a class that is none."""
    import torch

    x, target, weight = operands(inputs, 3)
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    counts = torch.ones(target.shape, dtype=torch.bool)
    for number in ignored:
        counts = target != number
    named = torch.where(counts, target, 0).long()
    if named.numel() and not 0 <= int(named.min()) <= int(named.max()) < x.shape[1]:
        raise IndexError(f"expected classes of 0 to {x.shape[1] - 1}, found {int(named.min())} to {int(named.max())}")
    weights = torch.ones(x.shape[1], dtype=wide) if weight is None else weight.to(wide)
    shares = torch.where(counts, weights[named], 0)
    loss = torch.where(counts, -x.to(wide).gather(1, named.unsqueeze(1)).squeeze(1) * shares, 0)
    if reduction != "none":
        loss = loss.sum() if reduction == "sum" else loss.sum() / shares.sum()
    outputs[0].copy_(loss)


OP = tensor_op(
    "class_loss",
    "y0 = -x0 at the classes x1, weighed by x2; for each, their sum or their mean",
    {"reduction": str, "ignored": tuple},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: 2 * prod(inputs[1]),
)
