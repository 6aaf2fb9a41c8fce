"""Does a prompt become the right text, and does an answer end, however it ends, with the session free for the next?"""

from __future__ import annotations

import gc
import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from hjgc import plan_format
from hjgc.plan_format.errors import PlanError, RunError
from hjgc.plan_format.fingerprint import fingerprint
from hjgc.plan_format.structs import Plan, TextFile
from hjgc.runtime import BackendRefused, SessionClosed, opening
from hjgc.runtime.answer import Stream
from hjgc.runtime.backend import Ids
from hjgc.runtime.llm import LLM
from hjgc.runtime.sampling_params import SamplingParams
from tests.plans import CONSTANTS, CONTEXT, VOCABULARY, small_plan, weights_file
from tests.runtime.fake_device import FakeDevice
from tests.runtime.serving import Arrivals, others, result
from tests.runtime.tokenizers_of_tests import byte_level

LETTERS = " abcdefghijklmnoprstuwy.,!éö😀"
BOS, EOS = 1, 2
TOKENIZER: Tokenizer = byte_level(letters=LETTERS)
assert TOKENIZER.get_vocab_size() <= VOCABULARY

LlmMaker = Callable[..., LLM]


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


class ScriptedDevice(FakeDevice):
    """Chooses the tokens of a script, one a step, from the first again when a new prompt comes; then letters `a`."""

    def __init__(self, plan: Plan, script: Sequence[int]) -> None:
        super().__init__(plan)
        self.script = list(script)
        self.sampling: dict[str, Any] = {}
        self.step = 0

    def write_history(self, offset: int, ids: Ids) -> None:
        super().write_history(offset, ids)
        self.step = 0

    def write_parameters(self, values: Any, prompt: Ids | None = None) -> None:
        super().write_parameters(values, prompt)
        if "temperature" in values:
            self.sampling = dict(values)

    def send_token(self) -> int:
        self.step += 1
        return self.script[self.step - 1] if self.step <= len(self.script) else ids_of("a")[0]


def write_plan(folder: Path, tokenizer: Tokenizer | str | None = TOKENIZER, **model: Any) -> Path:
    """A small plan with a tokenizer (or another text) beside it; `model` changes fields of its model."""
    plan = small_plan()
    if tokenizer is not None:
        text = tokenizer if isinstance(tokenizer, str) else tokenizer.to_str()
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        model["tokenizer"] = TextFile("tokenizer.json", hashlib.sha256(text.encode()).hexdigest())
    weights = folder / "weights.bin"
    files = (fingerprint(weights, weights.name),) if weights.exists() else plan.files
    plan = msgspec.structs.replace(plan, model=msgspec.structs.replace(plan.model, **model), files=files)
    plan_format.save(folder / "small.hjg", plan, sections={"constants": CONSTANTS})
    return folder / "small.hjg"


SCRIPT: list[int] = []
"""What devices that are opened from now on will say."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedDevice]:
    """The devices that plans are opened on, in order."""
    opened: list[ScriptedDevice] = []

    def open_device(plan: opening.Opened) -> ScriptedDevice:
        opened.append(ScriptedDevice(plan.file.plan, SCRIPT))
        return opened[-1]

    monkeypatch.setattr(opening, "_cpu", open_device)
    return opened


@pytest.fixture
def make(tmp_path: Path, device: list[ScriptedDevice]) -> Any:
    """Opens a small plan on a device that answers with a script: text, then ids."""
    made: list[LLM] = []

    def make(text: str = "", *ids: int, **model: Any) -> LLM:
        SCRIPT[:] = [*ids_of(text), *ids]
        made.append(LLM(write_plan(tmp_path, **model), capture=False))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def test_a_prompt_of_text_becomes_text_up_to_the_end_token(make: LlmMaker) -> None:
    answer = make(" world!", EOS).generate("hello", SamplingParams(temperature=0.0))
    assert answer.text == " world!"
    assert answer.token_ids == (*ids_of(" world!"), EOS)
    assert answer.finish_reason == "eos"
    assert answer.prompt_tokens == 1 + len("hello")
    assert answer.timings.ttft is not None and answer.timings.ttft >= 0
    assert len(answer.timings.per_token) == len(answer.token_ids) - 1


def test_the_tokenizer_puts_its_own_start_token_before_text_and_ids_are_taken_as_they_are(
    make: LlmMaker, device: list[ScriptedDevice]
) -> None:
    llm = make()
    for prompt, ids in (("hello", [BOS, *ids_of("hello")]), (ids_of("hello"), ids_of("hello"))):
        llm.generate(prompt, SamplingParams(max_tokens=1))
        assert device[0]._state("token_history").view("<i4")[: len(ids)].tolist() == ids


def test_a_stream_gives_the_same_answer_piece_by_piece(make: LlmMaker) -> None:
    llm = make("😀 hé!", EOS)
    stream = llm.generate("a", stream=True)
    pieces = list(stream)
    assert [piece.text for piece in pieces] == ["😀", " ", "h", "é", "!", ""]
    assert pieces[-1].token_ids == (EOS,)
    whole = llm.generate("a")
    assert "".join(piece.text for piece in pieces) == stream.completion.text == whole.text == "😀 hé!"
    assert tuple(token for piece in pieces for token in piece.token_ids) == stream.completion.token_ids
    assert whole.token_ids == stream.completion.token_ids


def test_the_answer_keeps_to_its_length(make: LlmMaker) -> None:
    answer = make("abcdef").generate("a", SamplingParams(max_tokens=3))
    assert (answer.text, answer.finish_reason) == ("abc", "length")


def test_an_end_token_may_be_ignored_and_reads_as_nothing(make: LlmMaker) -> None:
    answer = make("ab", EOS, *ids_of("cd")).generate("a", SamplingParams(max_tokens=5, ignore_eos=True))
    assert (answer.text, answer.finish_reason) == ("abcd", "length")


def test_a_stop_token_ends_the_answer_without_its_text(make: LlmMaker) -> None:
    (stop,) = ids_of("!")
    answer = make("ab!cd").generate("a", SamplingParams(stop_token_ids=[stop]))
    assert (answer.text, answer.finish_reason, answer.token_ids) == ("ab", "stop", tuple(ids_of("ab!")))


def test_a_stop_string_over_several_tokens_never_leaks(make: LlmMaker) -> None:
    llm = make("one. en, end of it")
    params = SamplingParams(stop=["end", "zzz"])
    stream = llm.generate("a", params, stream=True)
    assert [piece.text for piece in stream] == ["o", "n", "e.", " ", "en,", " ", ""]
    assert stream.completion.text == "one. en, "
    assert stream.completion.finish_reason == "stop"
    assert stream.completion.token_ids == tuple(ids_of("one. en, end"))


def test_text_held_back_for_a_stop_string_comes_when_the_answer_ends_otherwise(make: LlmMaker) -> None:
    answer = make("the en", EOS).generate("a", SamplingParams(stop="end"))
    assert (answer.text, answer.finish_reason) == ("the en", "eos")


def test_a_character_cut_in_two_by_the_length_is_marked_as_broken(make: LlmMaker) -> None:
    answer = make("a😀").generate("a", SamplingParams(max_tokens=4))
    assert (answer.text, answer.finish_reason) == ("a\ufffd", "length")


@pytest.mark.parametrize("prompt", [1, 17, CONTEXT - 1, CONTEXT])
def test_the_answer_ends_where_the_context_does(make: LlmMaker, prompt: int) -> None:
    answer = make().generate([5] * prompt, SamplingParams(max_tokens=None))
    assert answer.finish_reason == "context"
    assert len(answer.token_ids) == CONTEXT - prompt + 1  # the last token needs no place


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ("", "empty"),
        ([], "empty"),
        ([5] * (CONTEXT + 1), f"at most {CONTEXT} tokens .* found {CONTEXT + 1}"),
        ("a" * CONTEXT, f"at most {CONTEXT} tokens .* found {CONTEXT + 1}"),
        ([3, VOCABULARY], f"prompt token 1: expected an id from 0 to {VOCABULARY - 1} .* found {VOCABULARY}"),
        ([-1], "found -1"),
        ([1.5], "integer token ids"),
        (["a"], "integer token ids"),
        (b"abc", "found other things in a bytes"),
        (None, "found other things in a NoneType"),
        ("\ud800", "half a surrogate pair at character 0"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_cannot_be_served_is_refused_at_the_call(
    make: LlmMaker, device: list[ScriptedDevice], prompt: Any, complaint: str, stream: bool
) -> None:
    llm = make()
    with pytest.raises(RunError, match=complaint):
        llm.generate(prompt, stream=stream)
    assert device[0].log == []
    assert llm.generate("a", SamplingParams(max_tokens=1)).text == "a"


def test_a_token_that_the_embedding_has_no_row_for_is_named(make: LlmMaker) -> None:
    larger = byte_level(letters=LETTERS + "".join(chr(c) for c in range(0x41, 0x5B)))
    token = next(i for i in range(VOCABULARY, larger.get_vocab_size()) if larger.decode([i]).isascii())
    text = larger.decode([token])
    with pytest.raises(RunError, match=f"found {token}, '{text}' of a tokenizer of {larger.get_vocab_size()}"):
        make(tokenizer=larger).generate(f"ab{text}")


def test_the_sampling_parameters_reach_the_device(make: LlmMaker, device: list[ScriptedDevice]) -> None:
    params = SamplingParams(temperature=0.5, top_k=7, top_p=0.75, min_p=0.25, repetition_penalty=1.5, seed=1 << 33 | 9)
    make().generate("a", params)
    assert params.values().items() <= device[0].sampling.items()


def test_without_parameters_the_models_own_hold(make: LlmMaker, device: list[ScriptedDevice]) -> None:
    llm = make("ab", EOS, generation={"temperature": 0.625, "top_k": 20.0})
    llm.generate("a")
    assert (device[0].sampling["temperature"], device[0].sampling["top_k"]) == (0.625, 20)
    llm.generate("a", SamplingParams(temperature=0.0))
    assert (device[0].sampling["temperature"], device[0].sampling["top_k"]) == (0.0, 0)


def test_a_model_without_defaults_is_greedy(make: LlmMaker, device: list[ScriptedDevice]) -> None:
    make().generate("a")
    assert device[0].sampling["temperature"] == 0.0


def test_a_model_with_defaults_that_make_no_sense_is_refused_when_opened(make: LlmMaker) -> None:
    with pytest.raises(PlanError, match=r"\$\.model\.generation\.top_p: .* found 3\.0; compile the model again"):
        make(generation={"top_p": 3.0})


def test_a_callers_logits_processor_sees_the_tokens_so_far_and_the_logits(make: LlmMaker) -> None:
    seen: list[list[int]] = []

    def process(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        assert logits.shape == (VOCABULARY,)
        seen.append(ids.tolist())

    make().generate([5, 6], SamplingParams(max_tokens=3, logits_processor=process))
    assert [len(ids) for ids in seen] == [2, 3, 4]
    assert all(ids[:2] == [5, 6] for ids in seen)


def test_an_error_in_a_logits_processor_reaches_the_caller_and_frees_the_session(make: LlmMaker) -> None:
    def process(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        raise ZeroDivisionError("mine")

    llm = make("b")
    stream = llm.generate("a", SamplingParams(logits_processor=process), stream=True)
    with pytest.raises(ZeroDivisionError, match="mine"):
        next(stream)
    with pytest.raises(RunError, match="has not"):
        _ = stream.completion
    assert llm.generate("a", SamplingParams(max_tokens=1)).text == "b"


def test_cancel_between_pieces_ends_the_answer_with_what_it_has(make: LlmMaker) -> None:
    llm = make("abcdef")
    stream = llm.generate("a", stream=True)
    assert [next(stream).text, next(stream).text] == ["a", "b"]
    stream.cancel()
    assert list(stream) == []
    assert (stream.completion.text, stream.completion.finish_reason) == ("ab", "cancelled")
    assert llm.generate("a", SamplingParams(max_tokens=1)).text == "a"


def test_cancel_lets_text_out_that_was_held_back(make: LlmMaker, device: list[ScriptedDevice]) -> None:
    stream = make("an en").generate("a", SamplingParams(stop="end"), stream=True)
    device[0].before_launch = lambda name: stream.cancel() if device[0].step == 5 else None
    assert [piece.text for piece in stream] == ["a", "n", " ", "en"]
    assert (stream.completion.text, stream.completion.finish_reason) == ("an en", "cancelled")


def test_cancel_from_another_thread_in_the_middle_of_a_step(make: LlmMaker, device: list[ScriptedDevice]) -> None:
    stream = make("abcdef").generate("a", stream=True)
    assert next(stream).text == "a"
    device[0].before_launch = lambda name: stream.cancel() if name == "head" else None
    assert list(stream) == []
    assert (stream.completion.text, stream.completion.finish_reason) == ("a", "cancelled")


def test_cancel_while_waiting_for_the_turn_gives_an_empty_answer(make: LlmMaker) -> None:
    llm = make("abc")
    first, second = llm.generate("a", stream=True), llm.generate("a", stream=True)
    next(first)
    arrivals = Arrivals(llm.session)
    with others() as start:
        waiting = start(lambda: list(second))
        arrivals.wait()
        second.cancel()
        assert result(waiting) == []
    completion = second.completion
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("", (), "cancelled")
    assert completion.timings.ttft is None and completion.timings.per_token == ()
    first.close()


def test_a_deadline_midway_ends_the_answer_with_what_it_has(make: LlmMaker) -> None:
    stream = make("abcdef").generate("a", stream=True, deadline=1000.0)
    assert next(stream).text == "a"
    stream._answer._request._ticket._until = 0.0  # the clock strikes
    assert list(stream) == []
    assert (stream.completion.text, stream.completion.finish_reason) == ("a", "deadline")


def test_a_deadline_passes_in_the_queue_too(make: LlmMaker) -> None:
    llm = make("abc")
    first = llm.generate("a", stream=True)
    next(first)
    waited = llm.generate("a", deadline=0.001)
    assert (waited.text, waited.token_ids, waited.finish_reason) == ("", (), "deadline")
    first.close()
    assert llm.generate("a", SamplingParams(max_tokens=3)).text == "abc"


@pytest.mark.parametrize("way", ["close", "with", "drop", "break"])
def test_a_stream_that_nobody_reads_on_frees_the_session(make: LlmMaker, way: str) -> None:
    llm = make("abcdef")
    if way == "close":
        stream = llm.generate("a", stream=True)
        next(stream)
        stream.close()
        assert stream.completion.finish_reason == "cancelled"
    elif way == "with":
        with llm.generate("a", stream=True) as stream:
            next(stream)
    elif way == "drop":
        stream = llm.generate("a", stream=True)
        next(stream)
        gc.disable()  # not even the collector is needed
        del stream
        gc.enable()
    else:
        for _ in llm.generate("a", stream=True):
            break
    assert llm.generate("a", SamplingParams(max_tokens=2), deadline=60.0).text == "ab"


def test_a_stream_that_was_never_read_holds_nothing_and_may_be_closed(make: LlmMaker) -> None:
    llm = make("abc")
    stream = llm.generate("a", stream=True)
    assert llm.generate("a", SamplingParams(max_tokens=1), deadline=60.0).text == "a"
    with pytest.raises(RunError, match="read all its pieces, or close it"):
        _ = stream.completion
    stream.close()
    stream.close()
    assert (stream.completion.text, stream.completion.finish_reason) == ("", "cancelled")
    assert list(stream) == []


def test_closing_a_stream_that_has_ended_changes_nothing(make: LlmMaker) -> None:
    stream = make("ab", EOS).generate("a", stream=True)
    list(stream)
    stream.close()
    assert stream.completion.finish_reason == "eos"


def test_the_session_is_free_before_the_last_piece_is_read(make: LlmMaker) -> None:
    llm = make("abc")
    stream = llm.generate("a", SamplingParams(max_tokens=2), stream=True)
    assert [next(stream).text, next(stream).text] == ["a", "b"]  # not yet exhausted
    assert llm.generate("a", SamplingParams(max_tokens=1), deadline=60.0).finish_reason == "length"
    assert list(stream) == []


def test_a_stream_is_closed_by_another_thread_while_it_is_read(
    make: LlmMaker, device: list[ScriptedDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = make("abcdef")
    stream = llm.generate("a", stream=True)
    next(stream)
    inside, cancelled, may_go_on = threading.Event(), threading.Event(), threading.Event()
    cancel = stream.cancel
    monkeypatch.setattr(stream, "cancel", lambda: (cancel(), cancelled.set()))

    def pause(name: str) -> None:
        inside.set()
        assert may_go_on.wait(60)

    device[0].before_launch = pause
    with others() as start:
        reading = start(lambda: list(stream))
        assert inside.wait(60)
        closing = start(stream.close)
        assert cancelled.wait(60)
        may_go_on.set()
        assert result(reading) == []
        result(closing)
    assert (stream.completion.text, stream.completion.finish_reason) == ("a", "cancelled")


def test_a_logits_processor_may_close_its_own_stream(make: LlmMaker) -> None:
    streams: list[Stream] = []

    def process(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        if len(ids) > 3:
            streams[0].close()

    streams.append(make("abcdef").generate([5, 6], SamplingParams(logits_processor=process), stream=True))
    assert "".join(piece.text for piece in streams[0]) in ("ab", "abc")
    assert streams[0].completion.finish_reason == "cancelled"


def test_callers_at_the_same_time_each_get_their_own_answer(make: LlmMaker) -> None:
    llm = make("abcdef")
    with others() as start:
        lengths = [1, 2, 3, 4, 5, 6] * 3
        answers = [start(lambda n=n: llm.generate("a", SamplingParams(max_tokens=n))) for n in lengths]
        assert [result(answer).text for answer in answers] == ["abcdef"[:n] for n in lengths]


def test_a_refusal_of_the_device_reaches_the_caller_and_the_next_is_served(
    make: LlmMaker, device: list[ScriptedDevice]
) -> None:
    llm = make("abc")

    def refuse(name: str) -> None:
        raise BackendRefused("out of order")

    device[0].before_launch = refuse
    with pytest.raises(RunError, match="out of order"):
        llm.generate("a")
    device[0].before_launch = lambda name: None
    assert llm.generate("a", SamplingParams(max_tokens=1)).text == "a"


def test_a_closed_llm_serves_nobody_and_has_closed_its_plan(make: LlmMaker, device: list[ScriptedDevice]) -> None:
    with make("abc") as llm:
        stream = llm.generate("a", stream=True)
        next(stream)
    with pytest.raises(SessionClosed):
        list(stream)
    with pytest.raises(SessionClosed):
        llm.generate("a")
    assert device[0].closed
    llm.close()


def test_on_the_cpu_a_seed_decides_the_answer_and_graphs_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(weights_file(small_plan()))
    path = write_plan(tmp_path)
    params = {seed: SamplingParams(seed=seed, max_tokens=20, ignore_eos=True) for seed in (1, 2)}
    with LLM(path) as llm:
        first = {seed: llm.generate("hello", params[seed]) for seed in params}
        assert llm.session.wait_captured(60)
        again = {seed: llm.generate("hello", params[seed]) for seed in params}
    assert [again[seed].token_ids for seed in params] == [first[seed].token_ids for seed in params]
    assert first[1].token_ids != first[2].token_ids
    prompt = [BOS, *ids_of("hello")]
    for answer in first.values():
        assert answer.text == TOKENIZER.decode([*prompt, *answer.token_ids])[len("hello") :]


def test_a_plan_without_a_tokenizer_takes_and_gives_ids(make: LlmMaker) -> None:
    llm = make("abc", EOS, tokenizer=None)
    answer = llm.generate([5, 6])
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (*ids_of("abc"), EOS), "eos")
    with pytest.raises(
        PlanError, match=r"small.hjg: \$.model.tokenizer: expected a tokenizer, found none; pass token ids"
    ):
        llm.generate("abc")
    with pytest.raises(RunError, match="use stop_token_ids"):
        llm.generate([5, 6], SamplingParams(stop="a"))


def test_a_tokenizer_that_is_missing_or_changed_or_none_at_all_is_refused_before_anything_is_loaded(
    tmp_path: Path, device: list[ScriptedDevice]
) -> None:
    path = write_plan(tmp_path)
    file = tmp_path / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text + " ", encoding="utf-8")
    with pytest.raises(PlanError, match=r"expected sha256 .*, found .*; the tokenizer has changed"):
        LLM(path)
    file.unlink()
    with pytest.raises(PlanError, match=r"tokenizer\.json.* found no such file"):
        LLM(path)
    file.mkdir()
    with pytest.raises(PlanError, match="found no such file"):
        LLM(path)
    file.rmdir()
    with pytest.raises(PlanError, match="expected a tokenizer, found"):
        LLM(write_plan(tmp_path, "{}"))
    assert device == []


def test_settings_of_the_file_that_would_cut_or_pad_prompts_are_off(make: LlmMaker) -> None:
    cutting = Tokenizer.from_str(TOKENIZER.to_str())
    cutting.enable_truncation(3)
    cutting.enable_padding(length=20)
    assert make(tokenizer=cutting).generate("hello you", SamplingParams(max_tokens=1)).prompt_tokens == 10


def test_the_weights_folder_is_the_plans_own_or_the_one_that_is_named(
    tmp_path: Path, device: list[ScriptedDevice]
) -> None:
    path = write_plan(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(plan_format.InputError, match="elsewhere: expected the folder of the plan's weights"):
        LLM(path, weights=elsewhere)
    elsewhere.mkdir()
    with pytest.raises(PlanError, match="found no such file; name the weights root"):
        LLM(path, weights=elsewhere)
    (tmp_path / "tokenizer.json").rename(elsewhere / "tokenizer.json")
    LLM(path, weights=elsewhere).close()


def test_a_device_that_the_plan_has_no_target_for_is_refused(tmp_path: Path, device: list[ScriptedDevice]) -> None:
    for name in ("sm_90", "cuda", "tpu"):
        with pytest.raises(PlanError, match=rf"\$\.targets: expected a plan for {name}, found one for cpu; choose"):
            LLM(write_plan(tmp_path), device=name)


def test_a_target_that_does_not_work_here_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"cpu: torch is not installed, try pip install 'hjgc\[cpu\]'"):
        LLM(write_plan(tmp_path))


def test_a_plan_that_is_not_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="found nothing there"):
        LLM(tmp_path / "none.hjg")
