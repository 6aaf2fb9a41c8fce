"""Host function: hand the rows to a function of the caller's, on the host."""

from __future__ import annotations

from typing import Any

from hjgc.plan_format.ops.declaration import Op, read, write


def reference(x: Any, y: Any, *, process: Any) -> None:
    """`process(rows)` gets a copy of the rows [M, H], float32 in numpy, and changes it in place or returns another of
    the same shape."""
    rows = x.float().numpy().copy()
    changed = process(rows)
    y.copy_(y.new_tensor(rows if changed is None else changed))


OP = Op(
    name="host_function",
    summary="y = f(x), by a function of the caller's",
    roles=(read("x", "M H"), write("y", "M H")),
    attributes={},
    reference=reference,
    flops=lambda d: 0,
    bytes_moved=lambda d, item: 2 * d["M"] * d["H"] * item,
    host=True,
)
