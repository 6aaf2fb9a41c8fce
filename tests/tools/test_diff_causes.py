"""After one change, does `hjgc diff` name that change as the cause, and nothing else?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from hjgc.compiler import compile_model
from hjgc.models.export import export_model
from hjgc.plan_format import Plan
from tests.compiler.exports import SMALL, changed, copy_of, with_host_function
from tests.models.checkpoints import write_checkpoint
from tests.plans import small_plan
from tests.runtime.gpu_plan import write_gpu_plan
from tests.tools.command_line import CommandLine, write_small_plan
from tests.tools.plans_to_compare import compiled_plan, replace, rewritten, write

Cause = tuple[str, str, Any, Any]


def causes(hjgc: CommandLine, before: Path, after: Path) -> list[Cause]:
    ran = hjgc("diff", before, after, "--json")
    assert (ran.code, ran.err) == (1, "")
    found = [(c["kind"], c["name"], c["before"], c["after"]) for c in json.loads(ran.out)["causes"]]
    lines = hjgc("diff", before, after).out.splitlines()
    assert lines[lines.index("cause" if len(found) == 1 else "causes") - 1] == ""  # the first of all sections
    return found


OPTIONS: list[tuple[str, dict[str, Any], tuple[str, str]]] = [
    ("prompt", {"prompt": (1, 32)}, ("1:16", "1:32")),
    ("prompt", {"prompt": (5, 16)}, ("1:16", "5:16")),
    ("context", {"context": 128}, ("64", "128")),
    ("dtype", {"dtype": "bfloat16"}, ("float32", "bfloat16")),
    ("dtype", {"dtype": "float16"}, ("float32", "float16")),
]


@pytest.mark.parametrize(("name", "options", "values"), OPTIONS, ids=lambda value: str(value))
def test_after_one_option_that_option_is_the_cause(
    name: str, options: dict[str, Any], values: tuple[str, str], hjgc: CommandLine, tmp_path: Path
) -> None:
    before, after = compiled_plan(tmp_path / "a"), compiled_plan(tmp_path / "b", **options)
    assert causes(hjgc, before, after) == [("option", f"option {name}", *values)]


def test_a_prompt_that_follows_from_the_context_is_no_cause_and_says_so(hjgc: CommandLine, tmp_path: Path) -> None:
    before, after = (compiled_plan(tmp_path / f"{context}", prompt=None, context=context) for context in (64, 128))
    assert causes(hjgc, before, after) == [("option", "option context", "64", "128")]
    assert "option prompt: 1:64 -> 1:128, which follows from option context" in hjgc("diff", before, after).out


def test_an_element_type_that_follows_from_the_targets_is_no_cause(hjgc: CommandLine, tmp_path: Path) -> None:
    def compiled_with(**options: str) -> Callable[[Plan], Plan]:
        return lambda plan: replace(plan, producer=replace(plan.producer, options=options))

    (tmp_path / "gpu").mkdir()
    before = rewritten(write_small_plan(tmp_path), compiled_with(targets="cpu", dtype="float32"))
    # Of a checkpoint in float32, a GPU takes float16.
    for_gpu = compiled_with(targets="sm_90,compute_80", dtype="float16")
    after = rewritten(write_gpu_plan(tmp_path / "gpu"), for_gpu)
    assert causes(hjgc, before, after) == [("option", "option targets", "cpu", "sm_90,compute_80")]


def test_digests_that_were_asked_for_are_the_cause_of_digests(hjgc: CommandLine, tmp_path: Path) -> None:
    def digested(plan: Plan) -> Plan:
        return replace(plan, files=(replace(plan.files[0], sha256="0" * 64),))

    path = write(small_plan(), tmp_path / "a.hjg")
    assert causes(hjgc, path, rewritten(path, digested)) == [("option", "option digest", "off", "on")]


def checkpoint(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], *, layers: int = 2) -> Path:
    """A plan of the test model, its tensors changed."""
    write_checkpoint(folder, variant="gqa", num_hidden_layers=layers, seed=9)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    export_model(folder, folder / "model.onnx")
    return compile_model(folder / "model.onnx", folder / "plan.hjg", **SMALL).path


def same(tensors: dict[str, torch.Tensor]) -> None:
    del tensors


def test_after_the_element_type_of_all_stored_weights_that_is_the_cause(hjgc: CommandLine, tmp_path: Path) -> None:
    before, after = compiled_plan(tmp_path / "a"), compiled_plan(tmp_path / "b", stored="float16")
    assert causes(hjgc, before, after) == [("weight_dtype", "all 15 weights, stored as", "float32", "float16")]


def test_after_one_weights_stored_element_type_that_weight_is_the_cause(hjgc: CommandLine, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def one_in_half(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].half()

    before, after = checkpoint(tmp_path / "a", same), checkpoint(tmp_path / "b", one_in_half)
    assert causes(hjgc, before, after) == [("weight_dtype", f"weight {name}, stored as", "float32", "float16")]


def test_after_one_role_s_element_type_alone_that_role_is_the_cause(hjgc: CommandLine, tmp_path: Path) -> None:
    path = compiled_plan(tmp_path)
    after = rewritten(path, lambda plan: replace(plan, dtypes=replace(plan.dtypes, accumulation="bfloat16")))
    assert causes(hjgc, path, after) == [("dtype", "element type of accumulation", "float32", "bfloat16")]


def test_after_other_values_the_files_they_lie_in_are_the_cause(hjgc: CommandLine, tmp_path: Path) -> None:
    def scaled(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] *= 2

    before, after = checkpoint(tmp_path / "a", same), checkpoint(tmp_path / "b", scaled)
    assert causes(hjgc, before, after) == [("weights", "values in model.safetensors", None, None)]


def test_after_another_network_the_model_is_the_cause(hjgc: CommandLine, tmp_path: Path) -> None:
    before, after = checkpoint(tmp_path / "a", same), checkpoint(tmp_path / "b", same, layers=1)
    assert causes(hjgc, before, after) == [("model", "model: layers", "2", "1")]


def made_by(name: str, version: str, opset: int = 23) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        model.producer_name, model.producer_version = name, version
        model.opset_imports[""] = opset

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (made_by("pytorch", "2.11.0"), ("exporter", "exporter", "hjgc 0.1.0", "pytorch 2.11.0")),
        (made_by("hjgc", "0.1.0", 24), ("opset", "opset", 23, 24)),
        (
            made_by("pytorch", "2.11.0", 24),
            ("exporter", "exporter", "hjgc 0.1.0, opset 23", "pytorch 2.11.0, opset 24"),
        ),
    ],
)
def test_after_one_field_of_the_exporter_that_is_the_cause(
    change: Callable[[ir.Model], None], expected: Cause, hjgc: CommandLine, tmp_path: Path
) -> None:
    before = compiled_plan(tmp_path / "a")
    model = copy_of("gqa", tmp_path / "b")
    loaded = ir.load(model)
    change(loaded)
    model.unlink()
    ir.save(loaded, model)
    after = compile_model(model, tmp_path / "b" / "plan.hjg", **SMALL).path
    assert causes(hjgc, before, after) == [expected]


def test_after_another_node_the_node_is_the_cause(hjgc: CommandLine, tmp_path: Path) -> None:
    before, after = compiled_plan(tmp_path / "a"), compiled_plan(tmp_path / "b", function="steer")
    assert causes(hjgc, before, after) == [("onnx_graph", "nodes of the ONNX graph", None, "host/steer")]


def test_two_changes_are_two_causes(hjgc: CommandLine, tmp_path: Path) -> None:
    model = changed(copy_of("gqa", tmp_path / "b"), with_host_function("model.layers.0/Add_1"))
    after = compile_model(model, tmp_path / "b" / "plan.hjg", prompt=(1, 8), context=64).path
    found = causes(hjgc, compiled_plan(tmp_path / "a"), after)
    assert [kind for kind, *_ in found] == ["option", "onnx_graph"]


def of_producer(plan: Plan, **fields: Any) -> Plan:
    return replace(plan, producer=replace(plan.producer, **fields))


def test_after_another_version_the_version_is_the_cause_and_our_exporter_follows_it(
    hjgc: CommandLine, tmp_path: Path
) -> None:
    path = compiled_plan(tmp_path)
    version = ("hjgc", "hjgc version", "0.1.0", "0.2.0")
    exported_anew = {"onnx_producer": "hjgc 0.2.0", "onnx_sha256": "1" * 64, "opset": 24}
    for more in ({}, exported_anew):
        after = rewritten(path, lambda plan, more=more: of_producer(plan, hjgc="0.2.0", **more))
        assert causes(hjgc, path, after) == [version]


def test_an_onnx_file_of_an_older_version_of_ours_is_of_another_exporter(hjgc: CommandLine, tmp_path: Path) -> None:
    path = compiled_plan(tmp_path)
    after = rewritten(path, lambda plan: of_producer(plan, onnx_producer="hjgc 0.0.9", onnx_sha256="1" * 64))
    assert causes(hjgc, path, after) == [("exporter", "exporter", "hjgc 0.1.0", "hjgc 0.0.9")]


def test_after_a_size_range_alone_that_is_the_cause(hjgc: CommandLine, tmp_path: Path) -> None:
    before = write(small_plan(), tmp_path / "a.hjg")
    after = write(small_plan(buckets=(2, 4, 8)), tmp_path / "b.hjg")
    assert causes(hjgc, before, after)[0][:2] == ("size_range", "size range: plan prefill/tokens and 1 more")


def test_a_plan_that_was_tuned_says_so(hjgc: CommandLine, tmp_path: Path) -> None:
    def tuned(plan: Plan) -> Plan:
        variants = (*plan.variants[:-1], replace(plan.variants[-1], axes={"rows": 77}))
        producer = replace(plan.producer, options={**plan.producer.options, "tuned": "sm_90"})
        return replace(plan, variants=variants, producer=producer)

    path = write_gpu_plan(tmp_path)
    assert causes(hjgc, path, rewritten(path, tuned)) == [("option", "option tuned", None, "sm_90")]


def test_the_same_model_exported_twice_is_the_same_plan(hjgc: CommandLine, tmp_path: Path) -> None:
    twice = [checkpoint(tmp_path / name, same) for name in "ab"]
    assert hjgc("diff", *twice).code == 0
