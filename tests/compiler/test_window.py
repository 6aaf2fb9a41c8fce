"""Does a model with a window compute the same from a cache that is a ring, once positions have gone round?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hjgc.compiler import compile_model
from hjgc.plan_format import PlanFile
from hjgc.plan_format.structs import Plan
from hjgc.runtime.llm import LLM
from hjgc.runtime.sampling_params import SamplingParams
from hjgc.tools.judge import Judge
from hjgc.tools.verifying import compare, open_backend
from tests.compiler.exports import copy_of

WINDOW, MOST = 11, 16


def windowed(folder: Path, context: int, most: int = MOST) -> Plan:
    return compile_model(copy_of("window", folder), folder / "plan.hjg", prompt=(1, most), context=context).plan


def caches(plan: Plan) -> set[tuple[str, int]]:
    return {(state.kind, state.shape[1]) for state in plan.states if state.name.startswith("cache.")}


def test_a_ring_has_room_for_the_window_and_a_call(tmp_path: Path) -> None:
    assert caches(windowed(tmp_path / "ring", 100)) == {("ring_cache", WINDOW + MOST)}


def test_a_context_shorter_than_a_ring_keeps_everything(tmp_path: Path) -> None:
    assert caches(windowed(tmp_path / "full", WINDOW + MOST - 1)) == {("full_cache", WINDOW + MOST)}


def test_a_context_within_the_window_has_none(tmp_path: Path) -> None:
    plan = windowed(tmp_path / "none", WINDOW - 1, 4)
    windows = {
        launch.attributes["window"] for phase in plan.phases for launch in phase.launches if launch.op == "attention"
    }
    assert windows == {0}


@pytest.mark.parametrize("prompt", [1, 40])
def test_logits_are_those_of_the_onnx_model_when_positions_have_gone_round(prompt: int, tmp_path: Path) -> None:
    windowed(tmp_path, 100)
    with PlanFile(tmp_path / "plan.hjg") as file:
        backend = open_backend(file, tmp_path)
        judge = Judge(tmp_path / "model.onnx")
        (run,) = compare(
            file, backend, judge, lengths=[prompt], steps=98 - prompt, tolerance=1e-4, seed=0, tell=lambda _: None
        )
        backend.close()
    assert len(run.results) == 99 - prompt
    assert run.first_different(1e-4) is None


def test_graphs_of_a_ring_are_promoted_and_give_the_tokens_of_plain_launches(tmp_path: Path) -> None:
    windowed(tmp_path, 100)
    ids = np.random.default_rng(1).integers(0, 199, 30).tolist()
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    with LLM(tmp_path / "plan.hjg", capture=False) as llm:
        plain = llm.generate(ids, params).token_ids
    with LLM(tmp_path / "plan.hjg") as llm:
        answers = [llm.generate(ids, params).token_ids]
        llm.session.wait_captured()
        answers += [llm.generate(ids, params).token_ids for _ in range(2)]
        segments = llm.session.report()["segments"]
    assert answers == [plain] * 3
    states = {entry["state"] for entry in segments if entry.get("plain_runs")}
    assert states == {"PROMOTED"}
