"""Embedding: the rows of the table that the tokens of this call name."""

from __future__ import annotations

from typing import Any

from hjgc.plan_format.ops.declaration import PARAMETERS, Op, constant, read, write


def reference(history: Any, table: Any, parameters: Any, y: Any) -> None:
    """`history` [C] int32 holds prompt and answer; rows `start .. start + length` of it are this call's tokens."""
    import torch

    start = parameters.start
    torch.index_select(table, 0, history[start : start + y.shape[0]], out=y)


OP = Op(
    name="embedding",
    summary="y[i] = table[history[start + i]]",
    roles=(read("history", "C", "int32"), constant("table", "V H"), PARAMETERS, write("y", "M H")),
    attributes={},
    reference=reference,
    flops=lambda d: 0,
    bytes_moved=lambda d, item: 2 * d["M"] * d["H"] * item + 4 * d["M"],
)
