"""What does ONNX Runtime say of a decoder that somebody exported, and what does a plan of it say?"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from hjgc.compiler import CompileResult
from hjgc.plan_format import PlanFile, load
from hjgc.plan_format.structs import Plan
from hjgc.runtime.backend import Backend
from hjgc.tools.judge import Judge
from hjgc.tools.verifying import Run, compare, open_backend

LAYER = ("attention_inputs", "attention", "linear", "gated_linear", "linear")
DECODE = ("embedding", "rotary_table", *LAYER, *LAYER, "vocabulary_logits", "caller_logits", "sample")
"""What our own export launches for one token of two layers."""
PROMPT, STEPS = 12, 32
ROOM = 64
"""Rows of a cache whose file leaves open how many there are, and wants all of them from the start."""


class OneByOne(Judge):
    """Feeds one token at a time."""

    def step(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return [super(OneByOne, self).step([token]) for token in ids][-1]


def judge_of(model: Path, plan: Plan) -> Judge:
    """For any file whose batch is free: one that takes one token a step, or writes into a cache, too."""
    heads, _, size = next(state.shape for state in plan.states if state.name == "cache.0.key")
    proto = onnx.load(model, load_external_data=False)
    ids = next(value for value in proto.graph.input if value.name == "input_ids")
    kind = OneByOne if ids.type.tensor_type.shape.dim[1].dim_value == 1 else Judge
    return kind(_with_room(proto, model), cache=(heads, size), threads=1)


def _with_room(proto: onnx.ModelProto, model: Path) -> Path:
    """The file, or the same with the size of its caches written down."""
    scattered = any(node.op_type == "ScatterND" for node in proto.graph.node)
    rows = {value.type.tensor_type.shape.dim[2].dim_param for value in proto.graph.input if "keys" in value.name}
    if not scattered or not any(rows):
        return model
    for value in (*proto.graph.input, *proto.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in rows:
                axis.dim_value = ROOM
    path = model.with_name(f"{model.stem}.room.onnx")
    path.write_bytes(proto.SerializeToString())
    return path


@contextmanager
def opened(result: CompileResult) -> Generator[tuple[PlanFile, Backend]]:
    file = load(result.path)
    backend = open_backend(file, result.path.parent)
    try:
        yield file, backend
    finally:
        backend.close()
        file.close()


def compared(result: CompileResult, judge: Judge, tolerance: float, steps: int = STEPS) -> Run:
    """The run over a prompt and what follows it; it ends where something differs."""
    with opened(result) as (file, backend):
        (run,) = compare(
            file, backend, judge, lengths=[PROMPT], steps=steps, tolerance=tolerance, seed=0, tell=lambda _: None
        )
    return run
