"""On the GPU, is what no rule of a decoder covers computed: by launches of ours, or by ONNX Runtime between graphs, and
is what that costs counted?"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from hjgc.compiler import compile_model
from hjgc.runtime.opening import open_session
from tests.compiler.test_foreign import echoed, in_every_layer, on_the_host
from tests.compiler.test_recognise import planted
from tests.gpu.served import answered, checkpoint, prompt, target

CONTEXT, LENGTHS, STEPS = 1024, (1, 5, 33, 200, 620), 12
LAYERS, VOCABULARY = 2, 199


def gated(graph: ir.Graph) -> None:
    """QuickGelu, which no launch computes, on what attention gives."""
    for layer in range(LAYERS):
        echoed(graph, graph.node(f"model.layers.{layer}.self_attn.o_proj/MatMul"), "QuickGelu")


CHANGES = {
    "islands": on_the_host("Elu"),
    "gated": gated,
    "launches": in_every_layer("Elu"),
    "norms": planted("LayerNormalization"),
}
"""An operator in each layer that no rule covers, computed by ONNX Runtime or by us: QuickGelu is one of its CUDA
provider's, SampleOp one of the CPU's alone; a norm that no LLaMA has."""
PROVIDED = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@cache
def changed_plan(change: str, dtype: str, device: str) -> Path:
    folder = checkpoint("gqa", dtype)
    model = ir.load(folder / "model.onnx")
    CHANGES[change](model.graph)
    if change == "norms":
        norm = model.graph.node("planted/LayerNormalization")
        gain = model.graph.initializers["model.norm.weight"]
        norm.resize_inputs(2)
        norm.replace_input_with(1, gain)
    ir.save(model, folder / f"{change}.onnx")
    options: dict[str, Any] = {"targets": (device,), "context": CONTEXT, "kind": "decoder"}
    options |= {"dtype": dtype} if device != "cpu" else {}
    return compile_model(folder / f"{change}.onnx", folder / f"{change}-{device}-{dtype}.hjg", **options).path


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("change", CHANGES)
def test_logits_are_those_of_the_cpus_plan(change: str, dtype: str) -> None:
    found: list[list[np.ndarray[Any, Any]]] = []
    for device in ("cpu", target()):
        with open_session(changed_plan(change, dtype, device), device=device) as session:
            found.append([answered(session, prompt(length, VOCABULARY), 1)[0][0] for length in LENGTHS])
    for expected, made in zip(*found, strict=True):
        assert np.abs(expected - made).max() < 0.03 * np.abs(expected).max()


@pytest.mark.gpu
@pytest.mark.parametrize("change", CHANGES)
def test_graphs_give_the_same_bits_as_plain_launches(change: str) -> None:
    path = changed_plan(change, "float16", target())
    with open_session(path, capture=False) as session:
        plain = [answered(session, prompt(length, VOCABULARY), STEPS) for length in LENGTHS]
    with open_session(path) as session:
        for length in LENGTHS:
            answered(session, prompt(length, VOCABULARY), STEPS)
        assert session.wait_captured(120)
        for length, (rows, tokens) in zip(LENGTHS, plain, strict=True):
            again, chosen = answered(session, prompt(length, VOCABULARY), STEPS)
            assert tokens == chosen
            assert all(one.tobytes() == other.tobytes() for one, other in zip(rows, again, strict=True))
        report = session.report()
    served = [e for e in report["segments"] if e["kind"] == "static" and e["schedule"] == "default" and e["hits"]]
    assert served and {entry["state"] for entry in served} == {"PROMOTED"}


@pytest.mark.gpu
def test_the_report_counts_runs_and_the_bytes_that_cross() -> None:
    with open_session(changed_plan("islands", "float16", target()), capture=False) as session:
        answered(session, prompt(5, VOCABULARY), 3)
        report = session.report()
    islands = report["islands"]
    assert islands["islands"] == LAYERS and islands["runs"] == LAYERS * (1 + 3)
    phase = session.plan.phase("decode")
    island = next(launch for launch in phase.launches if launch.op == "island")
    sizes = [phase.buffers[o.index].shape[-1] for o in island.operands if o.access == "read"]
    rows = 5 + 3  # a prompt of five, then three tokens
    assert islands["bytes_to_host"] == LAYERS * rows * sum(int(size) for size in sizes) * 2  # type: ignore[arg-type] (columns are numbers)
    assert islands["bytes_to_device"] > 0 and islands["copy_seconds"] > 0 and islands["run_seconds"] > 0
    assert report["launch_ahead"]["steps"] == 0 and report["launch_ahead"]["off"].keys() <= {"island", "logits"}


@pytest.mark.gpu
@pytest.mark.skipif(not PROVIDED, reason="onnxruntime-gpu is not installed")
def test_islands_on_the_device_copy_nothing_and_a_step_is_one_graph() -> None:
    with open_session(changed_plan("gated", "float16", target())) as session:
        for _ in range(2):
            for length in LENGTHS:
                answered(session, prompt(length, VOCABULARY), STEPS)
            assert session.wait_captured(120)
        before = session.report()["islands"]["runs"]
        with session.request() as request:
            request.prefill(prompt(5, VOCABULARY), {})
            for _ in range(STEPS):
                request.decode()
        report = session.report()
    islands = report["islands"]
    assert (islands["providers"], islands["on_host"]) == ({"CUDAExecutionProvider": LAYERS}, {})
    assert (islands["bytes_to_host"], islands["bytes_to_device"]) == (0, 0)
    assert islands["runs"] == before, "graphs hold those of the prompt and of each step"
    (step,) = (e for e in report["segments"] if (e["phase"], e["schedule"]) == ("decode", "default"))
    assert (step["state"], step["segment"], step["last_segment"]) == ("PROMOTED", 0, 2 * LAYERS)
    assert step["hits"] >= STEPS and report["launch_ahead"]["steps"] > 0
