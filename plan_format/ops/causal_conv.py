"""Causal convolution: each channel's own filter over the numbers up to each, with those that came before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import operands


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> Sequence[TensorType]:
    """x0 [B, C, L], the filters x1 [C, 1, K], and if they are there the bias x2 [C] and what came before x3
    [B, C, K - 1], else zeros. Behind the result may come the last K - 1 of all."""
    del attributes
    x, filters, bias, past = (*inputs, None, None, None, None)[:4]
    if x is None or filters is None or len(inputs) > 4 or x.dtype not in FLOATS or len(x.shape) != 3:
        raise ValueError(f"expected three axes of a floating-point type and filters, found {x} and {filters}")
    taps = filters.shape[-1] if filters.shape else 0
    if not isinstance(taps, int) or taps < 1 or filters != TensorType(x.dtype, (x.shape[1], 1, taps)):
        raise ValueError(f"expected a filter for each channel of {x}, found {filters}")
    if bias is not None and bias != TensorType(x.dtype, (x.shape[1],)):
        raise ValueError(f"expected a bias for each channel of {x}, found {bias}")
    state = TensorType(x.dtype, (*x.shape[:2], taps - 1))
    if past is not None and past != state:
        raise ValueError(f"expected {state} from before, found {past}")
    return (x, state)[: max(1, len(outputs))]


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, silu: bool) -> None:
    """Computed in float32 at least."""
    import torch

    x, filters, bias, past = operands(inputs, 4)
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    before = filters.shape[-1] - 1
    whole = torch.nn.functional.pad(x, (before, 0)) if past is None else torch.cat((past, x), 2)
    windows = whole.to(wide).unfold(2, before + 1, 1)
    y = (windows * filters.to(wide)).sum(-1)
    y = y if bias is None else y + bias.to(wide)[:, None]
    outputs[0].copy_(torch.nn.functional.silu(y.to(x.dtype).to(wide)) if silu else y)
    if len(outputs) > 1:
        outputs[1].copy_(whole[:, :, whole.shape[2] - before :])


OP = tensor_op(
    "causal_conv",
    "y0 = silu(x1 over x3 and x0, channel by channel, + x2), or without silu; y1 = the last of x3 and x0",
    {"silu": bool},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: 2 * prod(outputs[0]) * inputs[1][-1],
)
