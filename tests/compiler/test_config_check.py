"""Is the user told where `config.json` says something else than the graph, and only there?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from hjgc.compiler import compile_model
from tests.compiler.exports import SMALL, copy_of


def notes(folder: Path, variant: str, **changed: Any) -> tuple[str, ...]:
    model = copy_of(variant, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").unlink()  # others have it too
    (folder / "config.json").write_text(json.dumps(config | changed), encoding="utf-8")
    return compile_model(model, folder / "plan.hjg", **SMALL).notes


@pytest.mark.parametrize("variant", ["mha", "bias", "qknorm", "llama3rope", "window"])
def test_a_model_beside_its_own_config_leaves_no_note(variant: str, tmp_path: Path) -> None:
    assert notes(tmp_path, variant) == ()


@pytest.mark.parametrize(
    ("variant", "changed", "words"),
    [
        (
            "gqa",
            {"model_type": "mistral", "sliding_window": 20},
            "says sliding_window 20, the graph computes with none",
        ),
        ("window", {"sliding_window": None}, "says sliding_window none, the graph computes with 11"),
        ("window", {"sliding_window": 12}, "says sliding_window 12, the graph computes with 11"),
        ("gqa", {"rope_theta": 500.0}, "says rope_theta and rope_scaling, rotary frequency 1 at 0.4599, the graph"),
        ("llama3rope", {"rope_scaling": None}, "says rope_theta and rope_scaling, rotary frequency"),
        ("gqa", {"rms_norm_eps": 1e-3}, "says rms_norm_eps 0.001, the graph computes with"),
        ("gqa", {"num_hidden_layers": 3}, "says num_hidden_layers 3, the graph computes with 2"),
        ("gqa", {"num_key_value_heads": 4}, "says num_key_value_heads 4, the graph computes with 2"),
    ],
)
def test_what_differs_is_named_with_both_numbers(
    variant: str, changed: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (note,) = notes(tmp_path, variant, **changed)
    assert words in note and str(tmp_path / "config.json") in note and note.endswith("the plan follows the graph")


def test_a_config_of_another_network_says_nothing(tmp_path: Path) -> None:
    assert notes(tmp_path, "gqa", model_type="gpt2") == ()


def test_a_file_that_notes_no_context_has_that_of_the_config_beside_it(tmp_path: Path) -> None:
    model = copy_of("gqa", tmp_path)
    proto = onnx.load(model, load_external_data=False)
    proto.producer_name = "somebody"
    del proto.metadata_props[:]
    model.unlink()
    onnx.save(proto, model)
    plan = compile_model(model, tmp_path / "plan.hjg").plan
    assert (plan.model.context, plan.model.architecture) == (1024, "llama")
