"""Caller logits: hand the last row of logits to the caller's own processor, on the host."""

from __future__ import annotations

from typing import Any

from hjgc.plan_format.ops.declaration import LOGITS_PROCESSOR, PARAMETERS, Op, read, update


def reference(history: Any, parameters: Any, logits: Any, *, process: Any) -> None:
    """`process(token_ids, row)` gets the ids so far [L] and the logits [V], both numpy, and changes `row` in place or
    returns another of the same shape."""
    row = logits[0].numpy()
    end = parameters.start + parameters.length
    changed = process(history[:end].numpy().copy(), row)
    if changed is not None:
        row[:] = changed


OP = Op(
    name="caller_logits",
    summary="logits = process(history, logits), by the caller's function",
    roles=(read("history", "C", "int32"), PARAMETERS, update("logits", "1 V", "logits")),
    attributes={},
    reference=reference,
    flops=lambda d: 0,
    bytes_moved=lambda d, item: 2 * d["V"] * item,
    host=True,
    callback=LOGITS_PROCESSOR,
)
