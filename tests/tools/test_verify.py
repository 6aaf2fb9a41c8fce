"""Does `hjgc verify` find equal what is equal, and name what is not?"""

from __future__ import annotations

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from hjgc import plan_format
from hjgc.compiler import compile_model
from hjgc.models.export import export_model
from hjgc.tools.judge import Judge
from hjgc.tools.locating import first_difference, named_values
from hjgc.tools.verifying import Step, StepResult, largest_error, open_backend, prompt_steps
from tests.models.checkpoints import write_checkpoint
from tests.tools.command_line import CommandLine, write_small_plan

PROMPT, CONTEXT = (1, 8), 64
ANY_STEP = Step("decode", "default", (1,), 5)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, model.onnx and plan.hjg."""
    folder = write_checkpoint(tmp_path_factory.mktemp("compiled"), num_hidden_layers=2)
    export_model(folder, folder / "model.onnx")
    compile_model(folder / "model.onnx", folder / "plan.hjg", prompt=PROMPT, context=CONTEXT)
    return folder


@pytest.fixture
def copied(compiled: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(compiled, tmp_path / "copy"))


def verify(hjgc: CommandLine, *arguments: object) -> tuple[int, dict[str, Any]]:
    ran = hjgc("verify", *map(str, arguments), "--json")
    return ran.code, json.loads(ran.out)


def refused(hjgc: CommandLine, *arguments: object) -> str:
    ran = hjgc("verify", *map(str, arguments))
    assert ran.code == 2
    return ran.error


def damage(folder: Path, tensor: str) -> None:
    """Change the first number of a tensor in model.safetensors."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    struct.pack_into("<f", data, 8 + length + header[tensor]["data_offsets"][0], 3.0)
    path.write_bytes(data)


def rewrite(path: Path, *, strip: bool = False, forget_digests: bool = False) -> None:
    """Save a plan again without its debug map, or without the sha256 of its weights."""
    with plan_format.load(path) as file:
        plan, debug, constants = file.plan, file.debug(), file.section("constants")
    if forget_digests:
        files = tuple(msgspec.structs.replace(entry, sha256=None) for entry in plan.files)
        plan = msgspec.structs.replace(plan, files=files)
    plan_format.save(path, plan, debug=None if strip else debug, sections={"constants": constants})


def test_a_plan_that_calls_a_function_of_the_callers_is_refused_in_words(hjgc: CommandLine, tmp_path: Path) -> None:
    plan = write_small_plan(tmp_path, function="steer")
    error = refused(hjgc, plan, "--against", tmp_path / "model.onnx")
    assert "expected a plan without functions of the caller's, found one that calls steer" in error


def test_a_plan_of_the_same_weights_is_equal_at_every_step(compiled: Path, hjgc: CommandLine):
    code, shown = verify(
        hjgc, compiled / "plan.hjg", "--against", compiled / "model.onnx", "--prompt-lengths", "1,5", "--steps", 3
    )
    assert (code, shown["equal"], shown["notes"]) == (0, True, [])
    assert [run["prompt"] for run in shown["runs"]] == [1, 5]
    for run in shown["runs"]:
        assert [step["phase"] for step in run["steps"]] == ["prefill", "decode", "decode", "decode"]
        assert [step["start"] for step in run["steps"]] == [0, *range(run["prompt"], run["prompt"] + 3)]
        assert all(step["token"] == step["judge_token"] and 0 < step["error"] < 1e-4 for step in run["steps"])


def test_a_prompt_longer_than_the_phase_is_compared_in_parts(compiled: Path, hjgc: CommandLine):
    code, shown = verify(hjgc, compiled / "plan.hjg", "--against", compiled / "model.onnx", "--prompt-lengths", "19")
    assert code == 0
    assert [step["start"] for step in shown["runs"][0]["steps"]] == [16, *range(19, 27)]


def test_decode_stops_at_the_context_and_says_so(compiled: Path, hjgc: CommandLine):
    code, shown = verify(
        hjgc, compiled / "plan.hjg", "--against", compiled / "model.onnx", "--prompt-lengths", CONTEXT - 2, "--steps", 5
    )
    assert code == 0 and len(shown["runs"][0]["steps"]) == 3
    assert shown["notes"] == [f"prompt of {CONTEXT - 2}: decode stops at the plan's context of {CONTEXT} tokens"]


@pytest.mark.parametrize(
    ("tensor", "launch", "role", "node"),
    [
        ("model.embed_tokens.weight", "embedding", "y", "Gather"),
        ("model.layers.0.self_attn.v_proj.weight", "layers.0.attention_inputs", "value_cache", None),
        ("model.layers.1.mlp.down_proj.weight", "layers.1.down_proj", "y", "model.layers.1/Add_1"),
        ("lm_head.weight", "vocabulary_logits", "logits", None),
    ],
)
def test_a_damaged_weight_is_found_at_the_launch_that_reads_it(
    compiled: Path,
    copied: Path,
    hjgc: CommandLine,
    tensor: str,
    launch: str,
    role: str,
    node: str | None,
):
    damage(copied, tensor)
    if tensor == "model.embed_tokens.weight":
        seed = next(seed for seed in range(500) if np.random.default_rng([seed, 7]).integers(0, 199, 7).min() == 0)
    else:
        seed = 0
    code, shown = verify(
        hjgc, compiled / "plan.hjg", "--against", copied / "model.onnx", "--prompt-lengths", 7, "--seed", seed
    )
    first = shown["first_difference"]
    assert (code, shown["equal"]) == (1, False)
    assert (first["launch"], first["role"]) == (launch, role)
    assert any(tensor in weight for weight in first["weights"])
    assert node in (None, first["onnx_node"]) and first["error"] > 1e-2


def test_the_answer_in_words_names_launch_node_and_weight(compiled: Path, copied: Path, hjgc: CommandLine):
    damage(copied, "model.layers.1.mlp.down_proj.weight")
    ran = hjgc("verify", compiled / "plan.hjg", "--against", copied / "model.onnx")
    assert ran.code == 1
    words = ran.out
    assert "first tensor that differs: layers.1.down_proj.y, in prefill of 1 tokens after 0" in words
    assert "ONNX node model.layers.1/Add_1" in words
    assert "reads model.layers.1.mlp.down_proj.weight" in words
    assert words.splitlines()[-1] == "different"


def test_a_plan_without_debug_map_compares_logits_only_and_says_so(
    copied: Path, compiled: Path, hjgc: CommandLine, tmp_path: Path
):
    rewrite(copied / "plan.hjg", strip=True)
    assert verify(hjgc, copied / "plan.hjg", "--against", compiled / "model.onnx")[0] == 0
    other = Path(shutil.copytree(compiled, tmp_path / "other"))
    damage(other, "lm_head.weight")
    code, shown = verify(hjgc, copied / "plan.hjg", "--against", other / "model.onnx")
    assert code == 1 and shown["first_difference"] is None
    assert "the plan's debug section was stripped, so only logits were compared" in shown["notes"][-1]


def test_every_value_that_the_debug_map_names_can_be_compared(compiled: Path):
    with plan_format.load(compiled / "plan.hjg") as file:
        debug = file.debug()
        assert debug is not None
        values = named_values(debug)
        judge = Judge(compiled / "model.onnx", values=values)
        steps = [*prompt_steps(file, list(range(10))), Step("decode", "default", (3,), 10)]
        backend = open_backend(file, compiled)
        search = first_difference(file, debug, backend, judge, steps, math.inf)
        backend.close()
    assert [step.start for step in steps] == [0, 8, 10]
    # The first part of the prompt ends before the logits.
    assert search.first is None and search.incomparable == () and search.compared == 3 * len(values) - 1


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 2e-2), ("bfloat16", 2e-1)])
def test_half_precision_is_judged_by_a_looser_tolerance(
    compiled: Path, copied: Path, hjgc: CommandLine, dtype: str, limit: float
):
    compile_model(compiled / "model.onnx", compiled / f"{dtype}.hjg", prompt=PROMPT, context=CONTEXT, dtype=dtype)
    arguments = (compiled / f"{dtype}.hjg", "--against", compiled / "model.onnx", "--prompt-lengths", 7)
    code, shown = verify(hjgc, *arguments)
    assert (code, shown["tolerance"]) == (0, limit)
    assert max(step["error"] for step in shown["runs"][0]["steps"]) > 1e-4
    code, shown = verify(hjgc, *arguments, "--tolerance", 1e-5)
    assert code == 1 and shown["first_difference"] is not None
    damage(copied, "model.layers.1.mlp.down_proj.weight")
    code, shown = verify(hjgc, compiled / f"{dtype}.hjg", "--against", copied / "model.onnx", "--prompt-lengths", 7)
    assert code == 1 and shown["first_difference"]["launch"] == "layers.1.down_proj"


def test_another_onnx_file_is_noted(compiled: Path, copied: Path, hjgc: CommandLine):
    graph = onnx.load(str(copied / "model.onnx"), load_external_data=False)
    graph.doc_string = "the same, otherwise"
    (copied / "model.onnx").write_bytes(graph.SerializeToString())
    code, shown = verify(hjgc, compiled / "plan.hjg", "--against", copied / "model.onnx", "--prompt-lengths", "3")
    assert code == 0 and "is not the file that the plan was compiled from" in shown["notes"][0]


def test_a_plan_alone_is_checked_with_its_weights(copied: Path, hjgc: CommandLine):
    code, shown = verify(hjgc, copied / "plan.hjg")
    assert code == 0 and set(shown["sections"]) == {"plan", "debug", "constants"}
    assert [entry["problem"] for entry in shown["weights"]] == [None]
    damage(copied, "model.embed_tokens.weight")
    code, shown = verify(hjgc, copied / "plan.hjg")
    assert (code, shown["equal"]) == (1, False)
    assert "sha256" in shown["weights"][0]["problem"]


def test_only_the_full_digest_sees_a_change_between_the_samples(copied: Path, hjgc: CommandLine):
    path = copied / "model.safetensors"
    data = bytearray(path.read_bytes())
    sampled = np.zeros(len(data), bool)
    sampled[:65536] = True
    for number in range(64):
        begin = (len(data) - 4096) * number // 63
        sampled[begin : begin + 4096] = True
    data[int(np.flatnonzero(~sampled)[0])] ^= 1
    path.write_bytes(data)
    assert verify(hjgc, copied / "plan.hjg")[0] == 0
    code, shown = verify(hjgc, copied / "plan.hjg", "--weights")
    assert code == 1 and shown["weights"][0]["problem"].startswith("expected sha256")


def test_a_digest_that_the_plan_does_not_record_is_only_told(copied: Path, hjgc: CommandLine):
    rewrite(copied / "plan.hjg", forget_digests=True)
    ran = hjgc("verify", copied / "plan.hjg", "--weights")
    assert ran.code == 0
    assert "the plan records none to compare with, compile with --digest" in ran.out


def test_weights_are_found_in_the_root_that_is_given(compiled: Path, tmp_path: Path, hjgc: CommandLine):
    plan = Path(shutil.copy(compiled / "plan.hjg", tmp_path))
    assert "expected" in refused(hjgc, plan)
    assert verify(hjgc, plan, "--weights-root", compiled)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--against", "missing.onnx"), "missing.onnx: expected an ONNX file, found no such file"),
        (("--against", "config.json"), "config.json: expected a model that loads, ONNX Runtime says:"),
        (
            ("--against", "other.onnx"),
            "other.onnx: input_ids: expected a decoder with input_ids and logits, found x, y",
        ),
        (("--against", "model.onnx", "--prompt-lengths", "65"), "--prompt-lengths: expected 1 to 64 for this plan"),
        (("--prompt-lengths", "0"), "expected whole numbers"),
        (("--tolerance", "nan"), "--tolerance"),
    ],
)
def test_what_cannot_be_compared_is_an_error_in_one_line(
    compiled: Path,
    monkeypatch: pytest.MonkeyPatch,
    hjgc: CommandLine,
    arguments: tuple[str, ...],
    words: str,
):
    monkeypatch.chdir(compiled)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "other", [x], [y])
    other = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    Path("other.onnx").write_bytes(other.SerializeToString())
    assert words in refused(hjgc, "plan.hjg", *arguments)


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([math.inf, 1.0], [math.inf, 1.0], 0.0),
        ([math.nan, 1.0], [1.0, 1.0], math.inf),
        ([-math.inf], [1.0], math.inf),
    ],
)
def test_what_is_not_a_number_differs_from_everything_else(found: list[float], expected: list[float], error: float):
    assert largest_error(np.array(found, np.float32), np.array(expected, np.float32)) == error


@pytest.mark.parametrize(
    ("error", "shortfall", "equal"), [(1e-5, 0.0, True), (1e-5, 1.5e-4, True), (1e-5, 3e-4, False), (2e-4, 0.0, False)]
)
def test_another_token_is_forgiven_only_among_logits_as_close_as_the_tolerance(
    error: float, shortfall: float, equal: bool
):
    assert StepResult(ANY_STEP, error, 1, 2, shortfall).equal(1e-4) is equal
