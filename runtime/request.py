"""What may a caller do while the device is theirs?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from operator import index
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.errors import RunError
from hjgc.plan_format.structs import Plan
from hjgc.runtime.backend import Backend, LogitsProcessor
from hjgc.runtime.errors import Cancelled, ContextFull
from hjgc.runtime.route import Router, Step, token_range
from hjgc.runtime.turns import Ticket, Turns

SAMPLING: dict[str, int | float] = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "seed_low": 0,
    "seed_high": 0,
}
"""The sampling fields of the parameter block, and what they are when a caller says nothing: greedy."""


class Request:
    """One prompt and its answer. Entering waits for the device, first come first served; leaving gives it back, however
    the block ends. `cancel`, `cancelled` and `expired` are for any thread; the rest for one thread at a time.

    Every step raises Cancelled or DeadlineExceeded once the request is to stop, and SessionClosed after the session is
    closed.

    While a caller waits for one token the device is already given the step to the next, unless the caller's own
    function or eyes come between (`process`, `logits`, a function that the plan calls) or the device does one thing at
    a time. Tokens and bits are the same; a step that nobody asks for in the end is finished by the device and
    forgotten."""

    def __init__(
        self,
        plan: Plan,
        backend: Backend,
        turns: Turns,
        router: Router,
        process: LogitsProcessor | None,
        logits: bool,
        deadline: float | None,
    ) -> None:
        self._plan, self._backend, self._turns, self._router = plan, backend, turns, router
        self._process, self._logits = process, logits
        self._not_ahead = _why_not_ahead(process, logits, router.functions.names, backend)
        self._schedule = "default" if process is None else "logits_processor"
        self._ticket = Ticket(deadline)
        self._stage = "new"
        self._position = 0
        self._answering = False
        self._ahead: Step | None = None
        self._strayed = False

    def __enter__(self) -> Request:
        if self._stage != "new":
            raise RunError(f"expected a new request, found one that is {self._stage}; make another")
        self._turns.take(self._ticket)
        self._stage = "active"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage = "over"
        self._overrun()
        # Whoever takes the error of a cancelled step inside of the block has no answer all the same.
        self._turns.give_back(self._ticket, Cancelled if kind is None and self._ticket.cancelled else kind)

    def cancel(self) -> None:
        """Let the request end: at its next step, between two launches of a prompt, or while it waits for its turn."""
        self._turns.cancel(self._ticket)

    @property
    def cancelled(self) -> bool:
        return self._ticket.cancelled

    @property
    def expired(self) -> bool:
        """Has the deadline passed?"""
        return self._ticket.expired

    @property
    def position(self) -> int:
        """How many tokens of the history are in the cache."""
        return self._position

    def prefill(self, ids: Sequence[int], sampling: Mapping[str, int | float]) -> int:
        """Read a prompt of 1 to `context` tokens and choose the first token of the answer. `sampling` sets fields of
        SAMPLING; the others take the values given there. Begins the history anew. Raises RunError."""
        self._check_active()
        prompt = self._checked_prompt(ids)
        parameters = _parameters(sampling)
        chunks = list(self._chunks(len(prompt)))
        self._ticket.check()
        self._overrun()
        self._position, self._answering = 0, False
        with self._router.turn():
            step = self._router.begin()
            for number, tokens in enumerate(chunks):
                schedule = self._schedule if number == len(chunks) - 1 else "prompt_only"
                fields = {**parameters, "start": self._position, "length": tokens}
                self._backend.write_parameters(fields, prompt if number == 0 else None)
                self._run("prefill", schedule, tokens, self._position, step)
                parameters = {}
                self._position += tokens
            self._router.send(step)
            token = self._router.read(step)
        self._answering, self._strayed = True, False
        return token

    def decode(self, *, last: bool = False) -> int:
        """Put the last token into the cache and choose the next. The caller of the `last` one says so, if that is known
        before: nothing is launched ahead then. Raises RunError; ContextFull once `context` tokens are cached."""
        self._check_active()
        self._check_answering()
        if self._position >= self._plan.model.context:
            raise ContextFull(
                f"expected fewer than {self._plan.model.context} tokens of prompt and answer, found the context full; "
                "end the answer here, or compile the model with a larger --context"
            )
        self._ticket.check()
        present, self._ahead = self._ahead, None
        try:
            with self._router.turn():
                if present is None:
                    present = self._router.begin()
                    self._decode(self._position, present)
                if not last:
                    self._launch_ahead(self._position + 1)
                token = self._router.read(present)
        except BaseException:
            self._ahead, self._strayed = None, True
            raise
        self._position += 1
        return token

    def logits(self) -> NDArray[np.float32]:
        """The logits [V] that the last token was chosen from. Raises RunError before the first token, and for a request
        that was not made for it."""
        self._check_active()
        self._check_answering()
        if not self._logits:
            raise RunError(
                "expected a request made for reading logits, found one that launches steps ahead of them; make it "
                "with session.request(logits=True)"
            )
        with self._router.turn():
            return self._backend.read_logits()

    def _run(self, phase: str, schedule: str, tokens: int, start: int, step: Step) -> None:
        ticket = self._ticket
        if not self._router.run(phase, schedule, tokens, start, self._process, lambda: ticket.stopped, step):
            raise ticket.error()

    def _decode(self, position: int, step: Step) -> None:
        """Launch the decode step behind `position` cached tokens. The step before has left its place in the parameter
        block; only after one that went wrong it has to be written."""
        if self._strayed:
            self._backend.write_parameters({"start": position, "length": 1})
            self._strayed = False
        self._run("decode", self._schedule, 1, position, step)
        self._router.send(step)

    def _launch_ahead(self, position: int) -> None:
        """Launch the step that the next `decode` will ask for. If it cannot be launched, that call finds out itself."""
        if position >= self._plan.model.context:
            return
        counts = self._router.ahead
        why = self._not_ahead or ("island" if self._router.waits("decode", self._schedule, 1) else None)
        if why is not None:
            counts.off[why] += 1
            return
        step = self._router.begin()
        try:
            self._decode(position, step)
        except Exception:  # counted; the `decode` that asks for this step launches it again, and meets what is wrong
            self._strayed = True
            counts.failed += not self._ticket.stopped
            self._router.drain()  # no later token is sure to come, which would tell that its graphs are free
        else:
            self._ahead = step
            counts.steps += 1

    def _overrun(self) -> None:
        """The step ahead, if there is one, was launched for nobody."""
        if self._ahead is not None:
            self._router.abandon(self._ahead)
            self._router.ahead.overruns += 1
            self._ahead = None

    def _chunks(self, tokens: int) -> Iterator[int]:
        """The lengths a prompt is cut into: as few as possible, each one that the prefill phase is declared for and has
        its code for now."""
        low, high = token_range(self._plan.phase("prefill"))
        if tokens < low:
            raise RunError(
                f"expected a prompt of at least {low} tokens, found {tokens}; compile the model with --prompt 1:{high}"
            )
        ask = True
        while True:
            wanted = min(tokens, high)
            most = self._router.most_rows("prefill", wanted, ask=ask)
            ask = ask and most == wanted
            if tokens <= most:
                break
            if not self._router.has_schedule("prefill", "prompt_only"):
                raise RunError(
                    f"expected a prompt of at most {most} tokens, since this plan has no schedule 'prompt_only' for "
                    f"prefill, found {tokens}; compile the model with --prompt {low}:{tokens}"
                )
            # The last chunk must not be shorter than the phase allows: the one before it leaves it enough.
            chunk = most if tokens - most >= low else tokens - low
            if chunk < low:
                raise RunError(
                    f"expected a prompt that can be cut into parts of {low} to {most} tokens, found {tokens} left "
                    f"over; compile the model with --prompt 1:{high}"
                )
            yield chunk
            tokens -= chunk
        yield tokens

    def _check_active(self) -> None:
        if self._stage != "active":
            raise RunError(f"expected a request in its `with` block, found one that is {self._stage}")

    def _check_answering(self) -> None:
        if not self._answering:
            raise RunError("expected a request with its prompt read, found none; call prefill(ids, sampling) first")

    def _checked_prompt(self, ids: Sequence[int]) -> NDArray[np.int32]:
        model = self._plan.model
        if not len(ids):
            raise RunError("expected a prompt of at least one token, found an empty one; begin with the model's bos_id")
        if len(ids) > model.context:
            raise RunError(
                f"expected a prompt of at most {model.context} tokens (the context), found {len(ids)}; shorten it, or "
                "compile the model with a larger --context"
            )
        try:
            tokens = _integers(ids)
        except TypeError as error:
            raise RunError(f"expected token ids, found others: {error}; encode text with the tokenizer first") from None
        if tokens.min() < 0 or tokens.max() >= model.vocab_size:
            place = next(i for i, token in enumerate(tokens) if not 0 <= token < model.vocab_size)
            raise RunError(
                f"expected token ids from 0 to {model.vocab_size - 1}, found {tokens[place]} at place {place} of the "
                "prompt; does the tokenizer belong to this model?"
            )
        return tokens.astype(np.int32)


def _integers(ids: Sequence[int]) -> NDArray[Any]:
    """At once where numpy takes them for integers; one by one where it does not. Raises TypeError."""
    with suppress(ValueError, TypeError):  # a list of lists, a tensor elsewhere
        found = np.asarray(ids)
        if found.dtype.kind in "iu" and found.ndim == 1:
            return found
    return np.array([index(token) for token in ids], object)


def _why_not_ahead(
    process: LogitsProcessor | None, logits: bool, functions: Sequence[str], backend: Backend
) -> str | None:
    """Why no step may be launched before the token of the one before was read; None if one may."""
    if process is not None:
        return "logits_processor"
    if logits:
        return "logits"
    if functions:
        return "host_function"
    return None if backend.asynchronous else "synchronous_device"


def _parameters(sampling: Mapping[str, int | float]) -> dict[str, int | float]:
    unknown = sorted(sampling.keys() - SAMPLING.keys())
    if unknown:
        raise RunError(f"expected sampling fields among {', '.join(SAMPLING)}, found {', '.join(unknown)}")
    for name, value in sampling.items():
        if not math.isfinite(value):
            raise RunError(f"expected a finite number for {name}, found {value}")
    return {**SAMPLING, **sampling}
