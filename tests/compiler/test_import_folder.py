"""Does `compile` take a Hugging Face folder as it lies on disk, and does the plan find its tokenizer?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from hjgc.compiler import CompileResult, compile_model
from hjgc.models import trace
from hjgc.models.export import export_model
from hjgc.models.links import Link
from hjgc.plan_format.errors import InputError, PlanError
from hjgc.runtime.opening import open_session
from tests.compiler.exports import SMALL
from tests.models.checkpoints import write_checkpoint
from tests.models.tracing import trace_once

IDS = [7, 3, 150, 22]


@pytest.fixture(autouse=True)
def one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "trace", trace_once)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "checkpoint")


def write_model(folder: Path, tokens: int = 150, **overrides: Any) -> Path:
    write_checkpoint(folder, num_hidden_layers=1, sharded=True, seed=2, **overrides)
    vocab = {f"t{i}": i for i in range(tokens)}
    tokenizer = {
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
        "added_tokens": [{"id": tokens, "content": "<s>"}],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    generation = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 5], "bos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def cached(folder: Path, cache: Path) -> Path:
    """The folder in the layout of Hugging Face's download cache: a snapshot of links to blobs."""
    snapshot, blobs = cache / "snapshots" / "0a1b", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for index, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / f"blob{index}")
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / f"blob{index}")
    return snapshot


def compiled(model: Path, plan: Path) -> CompileResult:
    return compile_model(model, plan, **SMALL)


def logits(plan: Path, weights: Path | None = None) -> bytes:
    with open_session(plan, weights=weights) as session, session.request(logits=True) as request:
        request.prefill(IDS, {})
        return request.logits().tobytes()


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check_the_plan_knows_its_model(result: CompileResult, root: Path, tokenizer: str = "tokenizer.json") -> None:
    model = result.plan.model
    assert (model.architecture, model.vocab_size, model.eos_ids, model.bos_id) == ("llama", 199, (2, 5), 1)
    assert model.generation == {"temperature": 0.6, "top_p": 0.9}
    assert model.tokenizer is not None
    assert (model.tokenizer.name, model.tokenizer.sha256) == (tokenizer, digest(root / tokenizer))


def test_a_folder_compiles_to_what_its_export_compiles_to(folder: Path) -> None:
    export_model(folder, folder / "model.onnx")
    direct, exported = compiled(folder, folder / "a.hjg"), compiled(folder / "model.onnx", folder / "b.hjg")
    check_the_plan_knows_its_model(direct, folder)
    check_the_plan_knows_its_model(exported, folder)
    assert direct.plan.model.name == "checkpoint"
    assert (direct.plan.phases, direct.plan.weights, direct.plan.files) == (
        exported.plan.phases,
        exported.plan.weights,
        exported.plan.files,
    )
    assert logits(direct.path) == logits(exported.path)
    assert (direct.notes, exported.notes) == ((), ())


def test_a_snapshot_of_links_compiles_names_the_links_and_runs(folder: Path, tmp_path: Path) -> None:
    plain = compiled(folder, folder / "plan.hjg")
    expected = logits(plain.path)
    (folder / "plan.hjg").unlink()
    snapshot = cached(folder, tmp_path / "models--some--model")
    result = compiled(snapshot, snapshot / "plan.hjg")
    check_the_plan_knows_its_model(result, snapshot)
    assert [file.name for file in result.plan.files] == [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    assert logits(result.path) == expected


def test_a_plan_elsewhere_says_which_folder_to_give_it_and_runs_with_that(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    result = compiled(folder, tmp_path / "plans" / "plan.hjg")
    check_the_plan_knows_its_model(result, folder)
    (note,) = result.notes
    assert f"--weights {folder}" in note
    with pytest.raises(PlanError):
        logits(result.path)
    assert logits(result.path, folder) == logits(compiled(folder, folder / "plan.hjg").path)


def test_weights_that_links_lead_out_of_the_folder_are_refused_as_a_session_would(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for file in folder.iterdir():
        (tmp_path / "links" / file.name).symlink_to(file)
    with pytest.raises(InputError, match=r"expected 'model-.* inside the weights root .*, found it at"):
        compiled(tmp_path / "links", tmp_path / "links" / "plan.hjg")
    assert not (tmp_path / "links" / "plan.hjg").exists()


@pytest.mark.parametrize("link", ["hard", "copy"])
def test_a_plan_from_a_linked_export_finds_the_tokenizer_among_the_weights(
    folder: Path, tmp_path: Path, link: Link
) -> None:
    output = tmp_path / "out" / "model.onnx"
    output.parent.mkdir()
    for _ in range(2):  # over an existing output too
        export_model(folder, output, link=link)
    result = compiled(output, output.with_name("plan.hjg"))
    check_the_plan_knows_its_model(result, output.parent, "model.weights/tokenizer.json")
    assert {Path(file.name).parent.as_posix() for file in result.plan.files} == {"model.weights"}
    assert result.notes == ()
    assert len(logits(result.path)) == 4 * 199


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused_with_both_figures(tmp_path: Path) -> None:
    folder = write_model(tmp_path, tokens=199)  # 0..198, and <s> at 199
    with pytest.raises(InputError) as caught:
        compiled(folder, folder / "plan.hjg")
    assert caught.value.place == str(folder / "tokenizer.json")
    assert caught.value.problem == "expected token ids below 199, the rows of the embedding, found 199"
    assert not (folder / "plan.hjg").exists()


TOKENIZERS: dict[str, tuple[bytes, bool]] = {
    # case: (tokenizer.json, whether it fits 199 rows)
    "unigram_that_fits": (json.dumps({"model": {"vocab": [["t", 0.0]] * 199}}).encode(), True),
    "unigram_too_long": (json.dumps({"model": {"vocab": [["t", 0.0]] * 200}}).encode(), False),
    "ids_with_gaps": (json.dumps({"model": {"vocab": {"a": 0, "b": 198}}, "added_tokens": None}).encode(), True),
    "an_id_beyond": (json.dumps({"model": {"vocab": {"a": 0, "b": 32000}}}).encode(), False),
    "an_added_id_beyond": (json.dumps({"model": {"vocab": {}}, "added_tokens": [{"id": 199}]}).encode(), False),
    "empty": (b"", False),
    "not_json": (b"\x89PNG", False),
    "a_list": (b"[]", False),
    "no_model": (b"{}", False),
    "vocabulary_a_number": (b'{"model": {"vocab": 7}}', False),
    "an_id_that_is_a_word": (b'{"model": {"vocab": {"a": "b"}}}', False),
    "an_id_that_is_infinite": (b'{"model": {"vocab": {"a": Infinity}}}', False),
    "nested_deep": (b'{"model":' * 100_000, False),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_is_taken_or_refused_in_one_line(case: str, folder: Path) -> None:
    data, fits = TOKENIZERS[case]
    (folder / "tokenizer.json").write_bytes(data)
    if fits:
        check_the_plan_knows_its_model(compiled(folder, folder / "plan.hjg"), folder)
        return
    with pytest.raises(InputError) as caught:
        compiled(folder, folder / "plan.hjg")
    assert caught.value.place == str(folder / "tokenizer.json")
    assert caught.value.problem.startswith("expected ") and "found " in caught.value.problem
    assert "\n" not in str(caught.value)


def test_a_tokenizer_larger_than_any_known_is_not_read(folder: Path) -> None:
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(1 << 40)  # a hole: it takes no disk
    with pytest.raises(InputError, match=f"found {1 << 40}"):
        compiled(folder, folder / "plan.hjg")


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "end_token_beyond": ({"eos_token_id": 199}, "eos_token_id"),
    "end_token_negative": ({"eos_token_id": [2, -1]}, "eos_token_id"),
    "end_token_a_word": ({"eos_token_id": "</s>"}, "eos_token_id"),
    "start_token_a_truth": ({"bos_token_id": True}, "bos_token_id"),
    "temperature_a_word": ({"do_sample": True, "temperature": "hot"}, "temperature"),
    "temperature_infinite": ({"do_sample": True, "temperature": float("inf")}, "temperature"),
    "top_p_no_number": ({"do_sample": True, "top_p": float("nan")}, "top_p"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_generation_config_that_makes_no_sense_is_refused_by_field(case: str, folder: Path) -> None:
    settings, field = SETTINGS[case]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError) as caught:
        compiled(folder, folder / "plan.hjg")
    assert (caught.value.place, caught.value.field) == (str(folder / "generation_config.json"), field)


def test_without_a_generation_config_the_end_token_is_that_of_config_json_and_the_answer_greedy(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    model = compiled(folder, folder / "plan.hjg").plan.model
    assert (model.eos_ids, model.bos_id, model.generation) == ((2,), 1, {})


def test_a_folder_that_a_model_names_outside_its_own_is_not_looked_into(folder: Path, tmp_path: Path) -> None:
    import onnx_ir as ir

    export_model(folder, folder / "model.onnx")
    write_model(tmp_path / "private")
    model = ir.load(folder / "model.onnx")
    for place in ("../private", str(tmp_path / "private")):
        model.metadata_props["hjgc.folder"] = place
        ir.save(model, folder / "model.onnx")
        result = compiled(folder / "model.onnx", folder / "plan.hjg")
        assert (result.plan.model.tokenizer, result.plan.model.eos_ids) == (None, ())
        assert any(f"in {place} are left out" in note for note in result.notes)
