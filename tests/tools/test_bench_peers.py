"""Does each peer do what it is named for, on whatever device?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hjgc.tools.benching import systems
from hjgc.tools.benching.settings import Settings
from hjgc.tools.peers import device_memory, ort_providers
from hjgc.tools.peers.device_memory import DeviceMemory
from hjgc.tools.peers.eager import EagerPeer
from hjgc.tools.peers.plan import ending
from hjgc.tools.peers.static import StaticPeer
from tests.plans import small_plan

SETTINGS = Settings((10, 20, 30, 40, 50), 8, 1000, 1, 0, 50, contexts=(16, 600))


def test_a_static_cache_gives_the_same_tokens_as_a_growing_one(model: Path):
    folder, prompt = str(model.parent), [5, 6, 7, 8, 9]
    growing = EagerPeer(folder=folder, dtype="float32", threads=1)
    fixed = StaticPeer(folder=folder, dtype="float32", threads=1, device="cpu", capacity=700)
    expected = growing.answer(prompt, 6).tokens
    assert fixed.answer(prompt, 6).tokens == expected
    assert len(fixed.answer([3] * 600, 2).tokens) == 2 and fixed.details()["cache_rows"] == 700
    assert fixed.answer(prompt, 6).tokens == expected and fixed.details()["cache_rows"] == 256


def test_compiled_lengths_are_warmed_up_at_the_start_and_others_run_eagerly(
    model: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch

    compiled: list[int] = []

    def compile(step: Any, **options: Any) -> Any:
        assert options == {"mode": "reduce-overhead", "dynamic": False}

        def fast(rows: Any, places: Any) -> Any:
            compiled.append(rows.shape[1])
            return step(rows, places)

        return fast

    monkeypatch.setattr(torch, "compile", compile)
    peer = StaticPeer(
        folder=str(model.parent), dtype="float32", threads=1, device="cpu", capacity=64, lengths=[4], compiled=True
    )
    assert set(compiled) == {1, 4} and "warm-up" in peer.startup.seconds
    compiled.clear()
    peer.answer([1] * 4, 2)
    peer.answer([1] * 9, 2)
    assert compiled == [4, 1, 1] and peer.details()["cache_rows"] == 64


def test_a_step_that_can_be_told_so_launches_nothing_ahead_of_the_last_token():
    told: list[bool] = []

    def decode(*, last: bool = False) -> int:
        told.append(last)
        return 1

    left = iter([False, True])
    step = ending(decode, lambda: next(left))
    assert step() == step() == 1 and told == [False, True]
    assert ending(lambda: 7, lambda: True)() == 7


class FakeGpu:
    """A driver that finds less free memory at every look."""

    def __init__(self) -> None:
        self.free = 1000
        self.closed = False

    def make_current(self) -> None:
        pass

    def free_bytes(self) -> tuple[int, int]:
        self.free -= 100
        return self.free, 2000

    def close(self) -> None:
        self.closed = True


def test_memory_is_counted_from_the_context_on(monkeypatch: pytest.MonkeyPatch):
    gpu = FakeGpu()
    monkeypatch.setattr(device_memory, "Driver", lambda: gpu)
    memory = DeviceMemory()
    assert memory.taken() == 100 and memory.taken() == 200
    memory.close()
    assert gpu.closed


def test_on_a_gpu_peers_answer_less_often_and_a_compiled_one_at_few_lengths():
    plan, paths = small_plan(), {"eager": Path("hf"), "compile": Path("hf")}
    specs = systems.plan_specs(Path("p.hjg"), ("graph",), None, "cuda")
    found = systems.contenders(specs, plan, paths, SETTINGS)
    assert list(found) == ["hjgc graph", "eager", "compile"]
    assert found["hjgc graph"].repeat == 1000 and found["eager"].repeat == systems.PEER_REPEAT
    eager, compiled = found["eager"], found["compile"]
    assert eager.lengths == SETTINGS.lengths and eager.contexts == (16, 600) and eager.spec["capacity"] == 616
    assert compiled.lengths == (10, 20, 40, 50) and compiled.contexts == (16,) and compiled.spec["capacity"] == 66
    assert compiled.spec["compiled"] and list(compiled.spec["lengths"]) == [10, 20, 40, 50]
    assert all(entry.spec["device"] == "cuda" for entry in found.values())


def test_on_the_cpu_eager_is_as_transformers_comes():
    paths = {"eager": Path("hf"), "compile": Path("hf"), "ort": Path("m.onnx")}
    specs = systems.peer_specs(small_plan(), paths, SETTINGS)
    assert {name: spec["kind"] for name, spec in specs.items()} == {"eager": "eager", "compile": "static", "ort": "ort"}
    assert specs["compile"]["lengths"] == list(SETTINGS.lengths) and specs["compile"]["device"] == "cpu"


def test_onnx_runtime_on_a_gpu_is_measured_wherever_we_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ort_providers, "load_cuda", lambda: None)
    here = Path(__file__)
    paths = systems.peer_paths(None, None, here, device=True)
    assert paths == {"ort-cuda": here} and systems.peer_paths(None, None, here) == {"ort": here}
    peer = systems.contenders({}, small_plan(), paths, SETTINGS)["ort-cuda"]
    assert peer.spec == {"kind": "ort", "model": str(here), "provider": "cuda", "threads": 1}
    assert (peer.lengths, peer.contexts, peer.repeat) == (SETTINGS.lengths, SETTINGS.contexts, systems.PEER_REPEAT)
