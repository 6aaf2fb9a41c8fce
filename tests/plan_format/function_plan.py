"""How do tests get a plan that is a function, with an island?

Its launches: 0 exp, 1 neg of a view of its result, 2 an island with a weight, 3 one of text, 4 exp of what the first
island gives. Its buffers: 0 a, 1 go, 2 what launch 0 gives, 3 launch 1, 4 launch 2, 5 launch 4, 6 the view of 2. Its
host values: 0 text, 1 words.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx

from hjgc.compiler import compile_model
from hjgc.plan_format import Plan, load

MODEL = """<ir_version: 10, opset_import: ["" : 21]>
function (float[N,4] a, bool go, string[K] text) => (float[M] y, string[K] words) <float[M] picked> {
    shape = Constant <value = int64[1] {-1}> ()
    rows = Exp(a)
    flat = Reshape(rows, shape)
    turned = Neg(flat)
    picked = If (go) <then_branch = yes () => (b) { sum = ReduceSum <keepdims = 0> (weight) b = Mul(turned, sum) },
                      else_branch = no () => (c) { c = Identity(turned) }>
    y = Exp(picked)
    words = Identity(text)
}"""


def write_function_plan(folder: Path) -> Path:
    model = onnx.parser.parse_model(MODEL)
    for value in (model.graph.output[0], model.graph.value_info[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "4*N"
    weight = np.ones((300_000, 1), np.float32)  # too large to lie inside the sub-model
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    onnx.save_model(model, folder / "model.onnx")
    compile_model(folder / "model.onnx", folder / "plan.hjg", kind="function", sizes={"N": (0, 8)})
    return folder / "plan.hjg"


@cache
def function_plan() -> tuple[Plan, Mapping[str, int]]:
    """The plan, and the lengths of its sections."""
    with tempfile.TemporaryDirectory(prefix="hjgc-") as folder, load(write_function_plan(Path(folder))) as file:
        return file.plan, file.section_lengths()
