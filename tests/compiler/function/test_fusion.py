"""Do the launches of an encoder become few for a GPU, however it was written, and mean the same?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

pytest.importorskip("triton")

import hjgc
from hjgc.compiler import CompileResult, compile_model
from hjgc.compiler.function.fusion.layout import contiguous
from hjgc.plan_format import dims
from hjgc.plan_format.sizes import Binary, Size
from hjgc.plan_format.structs import StaticSegment
from tests import packed
from tests.encoders import FORMS, LAYERS, SIZES, example, exported

pytestmark = pytest.mark.usefixtures("nothing_built")
LENGTHS = (2, 16, 45)
TOLERANCE = 2e-5
"""Of results up to 4: sums of float32 in another order."""
LAUNCHES = {"by torch's module": ["transpose", "matmul_map", "attention_rows", "matmul", "transpose"]}
"""Where rows stand before the batch."""
GONE = ("transpose", "softmax", "layer_norm", "island", "scaled_attention")


def compiled(form: str, folder: Path, *, open_sizes: bool) -> CompileResult:
    model = exported(form, torch.float32, open_sizes=open_sizes)
    sizes = SIZES if open_sizes else None
    plan = folder / "plan.hjg"
    return compile_model(model, plan, targets=("cpu", "sm_90"), kind="function", sizes=sizes)


@pytest.mark.parametrize(
    ("form", "open_sizes"), [("sdpa, by torch's exporter", False), *((form, True) for form in FORMS)]
)
def test_a_layer_is_seven_launches_in_one_segment_and_gives_onnx_runtimes_numbers(
    form: str, open_sizes: bool, tmp_path: Path
) -> None:
    result = compiled(form, tmp_path, open_sizes=open_sizes)
    (phase,) = result.plan.phases
    (segment,) = phase.schedule().segments
    assert isinstance(segment, StaticSegment)
    ops = Counter(launch.op for launch in phase.launches)
    assert ops["attention_rows"] == LAYERS and not [op for op in GONE if ops[op]]
    # Queries, keys and values are one product, the way up another; the way out and down are read by norms.
    assert ops["matmul_map"] + ops["matmul"] + ops["matmul_parts"] == 4 * LAYERS + 1
    assert ops["norm_map"] == 2 * LAYERS + 1
    model = exported(form, torch.float32, open_sizes=open_sizes)
    session = ort.InferenceSession(str(model))
    with hjgc.load(result.path, weights=model.parent, device="cpu") as function:
        for tokens in LENGTHS if open_sizes else (16,):
            feed = example(tokens)
            for found, wanted in zip(function(feed).values(), session.run(None, feed), strict=True):
                assert np.abs(found - np.asarray(wanted)).max() < TOLERANCE


@pytest.mark.parametrize(("way", "exporter", "open_sizes"), packed.FORMS)
def test_heads_that_one_product_left_side_by_side_are_read_there(
    way: str, exporter: str, open_sizes: bool, tmp_path: Path
) -> None:
    model = packed.exported(way, exporter, open_sizes=open_sizes)
    sizes = {"rows": (2, packed.MOST_ROWS)} if open_sizes else None
    plan = tmp_path / "plan.hjg"
    result = compile_model(model, plan, targets=("cpu", "sm_90"), kind="function", sizes=sizes)
    ops = [launch.op for launch in result.plan.phases[0].launches]
    assert ops == LAUNCHES.get(way, ["matmul_map", "attention_rows", "matmul_map"])
    session = ort.InferenceSession(str(model))
    with hjgc.load(plan, weights=model.parent, device="cpu") as function:
        for rows in (2, 7, 45) if open_sizes else (10,):
            feed = {"x": np.random.default_rng(rows).standard_normal((1, rows, packed.WIDTH)).astype(np.float32)}
            (found,), (wanted,) = function(feed).values(), session.run(None, feed)
            assert np.abs(found - np.asarray(wanted)).max() < TOLERANCE


def test_weights_that_were_stacked_are_in_the_plan_once(tmp_path: Path) -> None:
    plan = compiled("sdpa, by torch's exporter", tmp_path, open_sizes=False).plan
    used = {(o.space, o.index) for phase in plan.phases for launch in phase.launches for o in launch.operands}
    assert {("constant", i) for i in range(len(plan.constants))} <= used
    assert {("weight", i) for i in range(len(plan.weights))} <= used
    stacked = [entry.shape for entry in (*plan.constants, *plan.weights) if entry.shape == (3 * 64, 64)]
    assert len(stacked) == LAYERS


def test_a_layout_follows_an_axis_through_views_and_transposes() -> None:
    rows = Size("rows")
    heads = contiguous((2, rows, 48)).reshaped((2, rows, 3, 16))
    assert heads is not None
    turned = heads.transposed((0, 2, 3, 1))
    assert turned.strides() == [Binary("mul", 48, rows), 16, 1, 48]
    merged = turned.reshaped((6, 16, rows))
    assert merged is not None and merged.strides() is None
    again = merged.reshaped((2, 3, 16, rows))
    assert again is not None and again.strides() == turned.strides()
    assert contiguous((4, 6)).reshaped((3, 8)) is None
    assert contiguous((1, 5)).strides() == [0, 1]


def test_a_layout_follows_what_is_cut_out() -> None:
    rows = Size("rows")
    parts = contiguous((2, rows, 48)).reshaped((2, rows, 3, 16))
    assert parts is not None
    second = parts.cut(2, 1, 1)
    assert second is not None and (second.offset, second.strides()) == (16, [Binary("mul", 48, rows), 48, 0, 1])
    heads = second.reshaped((2, rows, 4, 4))
    assert heads is not None and (heads.offset, heads.strides()) == (16, [Binary("mul", 48, rows), 48, 4, 1])
    last = heads.cut(2, 3, 1)
    assert last is not None and last.offset == 28
    assert parts.cut(2, 0, 3) == parts
    merged = parts.transposed((0, 2, 1, 3)).reshaped((2, dims.mul(3, rows), 16))
    assert merged is not None and merged.cut(1, 1, 2) is None
    assert parts.cut(1, -2, 2) is None
