"""What does the chain compute in a process that serves only: plainly, and from a graph built node by node?

A program: `run_chain.py PLAN INPUT OUTPUT`. INPUT holds `x` [64, columns]. OUTPUT gets, for each number of rows, all 64
rows of the output buffer after a plain run and after a replay of the one graph for 64 rows; and the names of all
modules that the process loaded. A plan that cannot be served is one line on stderr.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from hjgc.plan_format import HjgcError, load
from hjgc.runtime.backend import Backend, MemoryRef
from hjgc.runtime.backends.cuda import CudaBackend

BUCKET, COUNTS = 64, (1, 7, 64)
POISON = 0x7E
"""Two such bytes are a float16 NaN."""


def main(plan: Path, source: Path, target: Path) -> None:
    x = np.load(source)["x"]
    found: dict[str, Any] = {}
    with load(plan) as file:
        backend = CudaBackend(file, plan.parent)
        phase = file.plan.phases[0]
        ends = (MemoryRef("buffer", phase.inputs[0], phase.name), MemoryRef("buffer", phase.outputs[0], phase.name))
        launches = [n for segment in phase.schedules[0].segments for n in segment.launches]
        graph = backend.build(phase.name, launches, BUCKET)
        for rows in COUNTS:
            _prepare(backend, ends, x, rows)
            assert backend.run(phase.name, launches, rows)
            found[f"plain{rows}"] = _output(backend, ends[1])
            _prepare(backend, ends, x, rows)
            backend.replay(graph, rows)
            found[f"graph{rows}"] = _output(backend, ends[1])
        backend.release(graph)
        backend.close()
    found["modules"] = np.array(sorted(sys.modules))
    np.savez(target, **found)


def _prepare(backend: Backend, ends: tuple[MemoryRef, MemoryRef], x: np.ndarray, rows: int) -> None:
    """The input in place, the output full of NaNs, the number of rows that count in the parameter block."""
    saved = {ends[0]: x.view(np.uint8).reshape(-1), ends[1]: np.full(x.nbytes, POISON, np.uint8)}
    backend.restore(saved, 0, BUCKET)
    backend.write_parameters({"start": 0, "length": rows})


def _output(backend: Backend, ref: MemoryRef) -> np.ndarray:
    return backend.snapshot([ref], 0, BUCKET)[ref].view(np.float16).reshape(BUCKET, -1)


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:4]))
    except HjgcError as error:
        sys.exit(str(error))
