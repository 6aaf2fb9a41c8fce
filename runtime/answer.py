"""How do the steps of one request become pieces of text, and what ends them?"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import GEN_CLOSED, GEN_RUNNING, getgeneratorstate
from types import TracebackType

from hjgc.plan_format.errors import RunError
from hjgc.runtime.completion import Completion, FinishReason, Piece, Timings
from hjgc.runtime.errors import Cancelled, DeadlineExceeded
from hjgc.runtime.request import Request
from hjgc.runtime.text_stream import Decode, StopStrings, TextStream


@dataclass(frozen=True)
class Ends:
    """What ends an answer, other than its caller."""

    eos_ids: Collection[int]
    stop_ids: Collection[int]
    stop_strings: Sequence[str]
    max_tokens: int | None
    context: int


class Answer:
    """One answer as it grows. `started` is when its caller asked, by `time.perf_counter`."""

    def __init__(
        self,
        request: Request,
        prompt: Sequence[int],
        sampling: Mapping[str, int | float],
        ends: Ends,
        decode: Decode,
        started: float,
    ) -> None:
        self._request, self._prompt, self._sampling, self._ends = request, prompt, sampling, ends
        self._text_stream, self._stop_strings = TextStream(decode, prompt), StopStrings(ends.stop_strings)
        self._started = started
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._ids_given = self._texts_given = 0
        self._ttft: float | None = None
        self._per_token: list[float] = []
        self.finish_reason: FinishReason | None = None

    def cancel(self) -> None:
        self._request.cancel()

    def pieces(self) -> Generator[Piece, None, None]:
        """Take the turn, and the steps. The turn is given back before the last piece, or when the generator closes."""
        try:
            with self._request as request:
                self._take(self._first(request), request)
                while self.finish_reason is None:
                    if self._texts_given < len(self._texts):
                        yield self._piece()
                    self._take(self._next(request), request)
        except Cancelled:
            self.end("cancelled")
        except DeadlineExceeded:
            self.end("deadline")
        if self._ids_given < len(self._ids) or self._texts_given < len(self._texts):
            yield self._piece()

    def end(self, reason: FinishReason) -> None:
        """Let the text that was held back out: nothing can follow it any more."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self._say(self._stop_strings.push(self._text_stream.finish()) + self._stop_strings.finish())

    def completion(self) -> Completion:
        """Raises RunError as long as there is none."""
        if self.finish_reason is None:
            raise RunError(
                "expected an answer that has ended, found one that has not; read all its pieces, or close it"
            )
        timings = Timings(self._ttft, tuple(self._per_token))
        return Completion("".join(self._texts), tuple(self._ids), len(self._prompt), self.finish_reason, timings)

    def _first(self, request: Request) -> int:
        token = request.prefill(self._prompt, self._sampling)
        self._ttft = time.perf_counter() - self._started
        return token

    def _next(self, request: Request) -> int:
        before = time.perf_counter()
        token = request.decode(last=len(self._ids) + 1 == self._ends.max_tokens)
        self._per_token.append(time.perf_counter() - before)
        return token

    def _take(self, token: int, request: Request) -> None:
        """Add a token, its text if it has any, and find out whether it is the last."""
        self._ids.append(token)
        if token in self._ends.eos_ids:
            return self.end("eos")
        if token in self._ends.stop_ids:
            return self.end("stop")
        self._say(self._stop_strings.push(self._text_stream.push(token)))
        if self._stop_strings.found is not None:
            self.end("stop")
        elif len(self._ids) == self._ends.max_tokens:
            self.end("length")
        elif request.position >= self._ends.context:
            self.end("context")

    def _say(self, text: str) -> None:
        if text:
            self._texts.append(text)

    def _piece(self) -> Piece:
        piece = Piece("".join(self._texts[self._texts_given :]), tuple(self._ids[self._ids_given :]))
        self._texts_given, self._ids_given = len(self._texts), len(self._ids)
        return piece


class Stream:
    """The pieces of an answer, as they become certain; all texts together are the completion's text, all token ids its
    ids. The session is taken at the first piece and free again before the last, at `close()`, at the end of a `with`
    block, or when the stream is dropped. `cancel` and `close` may be called from any thread."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._pieces = answer.pieces()  # knows the answer but not this stream: no cycle keeps a dropped stream alive
        self._reading = threading.RLock()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        with self._reading:
            return next(self._pieces)

    @property
    def completion(self) -> Completion:
        """The whole answer. Raises RunError before its end."""
        return self._answer.completion()

    def cancel(self) -> None:
        """Let the answer end at its next step, or while it waits for its turn, with what it has."""
        self._answer.cancel()

    def close(self) -> None:
        """Cancel, and give the session back before returning (after the step in progress, if another thread reads)."""
        if getgeneratorstate(self._pieces) == GEN_CLOSED:
            return
        self.cancel()
        with self._reading:
            if (
                getgeneratorstate(self._pieces) == GEN_RUNNING
            ):  # called by the caller's own logits processor: the step after this one ends it
                return
            unread = getgeneratorstate(self._pieces) != GEN_CLOSED
            self._pieces.close()
            if unread:
                self._answer.end("cancelled")

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
