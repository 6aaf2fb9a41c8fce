"""Are the checkpoints that we measure with what they say they are?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from hjgc.models.checkpoint import locate_tensors, tensor_shapes
from hjgc.models.config import read_config
from hjgc.tools import make_checkpoint
from hjgc.tools.make_checkpoint import PRESETS, command
from tests.models.checkpoints import TINY


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset that takes no time."""
    monkeypatch.setitem(PRESETS, "llama2-7b", PRESETS["llama2-7b"] | TINY | {"torch_dtype": "float32"})
    monkeypatch.setattr(make_checkpoint, "PIECE", 1000)


def written(folder: Path, *arguments: str) -> str:
    ran = CliRunner().invoke(command, [str(folder), *arguments], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.output


@pytest.mark.parametrize(("preset", "millions"), [("110m", 110), ("tinyllama-1.1b", 1100), ("llama2-7b", 6738)])
def test_a_preset_has_the_size_it_is_named_after(tmp_path: Path, preset: str, millions: int):
    written(tmp_path, "--preset", preset, "--sparse")
    config = read_config(tmp_path)
    tensors = locate_tensors(tmp_path, config)
    parameters = sum(torch.Size(shape).numel() for shape in tensor_shapes(config).values())
    assert round(parameters / 1e6) == millions
    size = (tmp_path / "model.safetensors").stat()
    assert size.st_size == max(tensor.offset + tensor.length for tensor in tensors.values())
    assert size.st_blocks * 512 < 1 << 20


def test_weights_are_random_of_the_right_scale_and_the_same_every_time(tmp_path: Path, tiny: None):
    for name in ("one", "two"):
        written(tmp_path / name, "--preset", "llama2-7b")
    written(tmp_path / "other", "--preset", "llama2-7b", "--seed", "1")
    one, two, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other"))
    assert one == two != other
    tensors: dict[str, Any] = load_file(tmp_path / "one" / "model.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == tensor_shapes(read_config(tmp_path / "one"))
    assert all(tensor.count_nonzero() == tensor.numel() for tensor in tensors.values())
    assert tensors["lm_head.weight"].std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert tensors["model.norm.weight"].mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_the_same_numbers_rounded(tmp_path: Path, tiny: None, dtype: str):
    written(tmp_path / "full", "--preset", "llama2-7b")
    written(tmp_path / "half", "--preset", "llama2-7b", "--dtype", dtype)
    full = load_file(tmp_path / "full" / "model.safetensors")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert all(torch.equal(full[name].to(getattr(torch, dtype)), half[name]) for name in full)
