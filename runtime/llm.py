"""How does a prompt become an answer?"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, overload

from hjgc.plan_format.errors import InputError, PlanError, RunError
from hjgc.runtime.answer import Answer, Ends, Stream
from hjgc.runtime.backend import HostFunction
from hjgc.runtime.code_choice import Trust
from hjgc.runtime.completion import Completion
from hjgc.runtime.opening import Opened, open_plan, start_session
from hjgc.runtime.sampling_params import SamplingParams, from_generation
from hjgc.runtime.session import GRAPH_BYTES, NO_FUNCTIONS
from hjgc.runtime.tokenizer import load_tokenizer


class LLM:
    """A plan that is served, with its tokenizer. Close it, or use it as a context manager.

    `weights` is the folder of the weights and the tokenizer (by default the plan's own); `device`, `graph_bytes`,
    `capture`, `strict`, `trust`, `progress` and `functions` are as for a session. May be used from any thread: requests
    are served first come first served. A plan without a tokenizer takes and gives token ids only; its texts are empty.
    Raises PlanError, InputError, RunError."""

    def __init__(
        self,
        plan: str | Path,
        *,
        weights: str | Path | None = None,
        device: str | None = None,
        graph_bytes: int = GRAPH_BYTES,
        capture: bool = True,
        strict: bool = False,
        trust: Trust = "plan",
        progress: Callable[[str], None] = lambda stage: None,
        functions: Mapping[str, HostFunction] = NO_FUNCTIONS,
    ) -> None:
        self._path = Path(plan)
        opened = open_plan(plan, weights)
        try:
            # Before the weights are loaded, which may take long.
            self.tokenizer = load_tokenizer(opened.file.plan.model, opened.root)
            self.defaults = _defaults(opened)
        except BaseException:
            opened.file.close()
            raise
        self.session = start_session(
            opened,
            device=device,
            graph_bytes=graph_bytes,
            capture=capture,
            strict=strict,
            trust=trust,
            progress=progress,
            functions=functions,
        )
        self._model = self.session.plan.model

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        stream: Literal[False] = False,
        deadline: float | None = None,
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        stream: Literal[True],
        deadline: float | None = None,
    ) -> Stream: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        stream: bool,
        deadline: float | None = None,
    ) -> Completion | Stream: ...

    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        stream: bool = False,
        deadline: float | None = None,
    ) -> Completion | Stream:
        """The answer to a prompt of text, or of token ids taken as they are: whole, or as a stream of its pieces.

        Without `params` the model's own defaults hold (`self.defaults`), greedy if it has none. `deadline` is in
        seconds from now, waiting for other requests included: the answer then ends with what it has. Raises RunError
        for a prompt that cannot be served."""
        started = time.perf_counter()
        pieces = Stream(self._answer(self._ids(prompt), params or self.defaults, deadline, started))
        if stream:
            return pieces
        with pieces:
            for _ in pieces:
                pass
            return pieces.completion

    def close(self) -> None:
        """End service and give all memory back. May be called twice."""
        self.session.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, ids: list[int], params: SamplingParams, deadline: float | None, started: float) -> Answer:
        if params.stop_strings and self.tokenizer is None:
            raise RunError("expected no stop strings, since the plan names no tokenizer; use stop_token_ids")
        ends = Ends(
            eos_ids=frozenset() if params.ignore_eos else frozenset(self._model.eos_ids),
            stop_ids=frozenset(params.stop_token_ids),
            stop_strings=params.stop_strings,
            max_tokens=params.max_tokens,
            context=self._model.context,
        )
        request = self.session.request(process=params.logits_processor, deadline=deadline)
        decode = _no_text if self.tokenizer is None else self.tokenizer.decode
        return Answer(request, ids, params.values(), ends, decode, started)

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        ids = self._encode(prompt) if isinstance(prompt, str) else _integers(prompt)
        if not ids:
            raise RunError("expected a prompt of at least one token, found an empty one")
        if len(ids) > self._model.context:
            raise RunError(
                f"expected a prompt of at most {self._model.context} tokens (the model's context), found {len(ids)}; "
                "shorten it, or compile with a larger --context"
            )
        if min(ids) < 0 or max(ids) >= self._model.vocab_size:
            raise self._out_of_range(ids)
        return ids

    def _encode(self, prompt: str) -> list[int]:
        if not prompt:
            raise RunError("expected a prompt of at least one character, found an empty one")
        if self.tokenizer is None:
            next_step = "pass token ids, or compile from a folder that has tokenizer.json"
            raise PlanError(
                self._path, "expected a tokenizer, found none", field="$.model.tokenizer", next_step=next_step
            )
        return self.tokenizer.encode(prompt)

    def _out_of_range(self, ids: Sequence[int]) -> RunError:
        size = self._model.vocab_size
        place, token = next((i, token) for i, token in enumerate(ids) if not 0 <= token < size)
        message = f"prompt token {place}: expected an id from 0 to {size - 1} (the model's embedding), found {token}"
        if self.tokenizer is None or token < 0:
            return RunError(message)
        return RunError(
            f"{message}, {self.tokenizer.token(token)!r} of a tokenizer of {self.tokenizer.size}; compile the model "
            "with the tokenizer that belongs to it"
        )


def _integers(prompt: Sequence[int]) -> list[int]:
    try:
        if isinstance(prompt, bytes | bytearray):
            raise TypeError
        return [operator.index(token) for token in prompt]
    except TypeError:
        found = type(prompt).__name__
        raise RunError(f"expected a prompt of text or of integer token ids, found other things in a {found}") from None


def _defaults(opened: Opened) -> SamplingParams:
    try:
        return from_generation(opened.file.plan.model.generation)
    except InputError as error:
        field = f"$.model.generation.{error.field}"
        raise PlanError(opened.file.path, error.problem, field=field, next_step="compile the model again") from None


def _no_text(ids: Sequence[int]) -> str:
    del ids
    return ""
