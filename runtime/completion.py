"""What does a caller get back from a prompt?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "eos", "length", "context", "cancelled", "deadline"]


@dataclass(frozen=True)
class Timings:
    """In seconds. `ttft`: from the call of `generate` to the first token, waiting for the turn included; None if there
    was none. `per_token`: what each later token took, one figure a token."""

    ttft: float | None
    per_token: tuple[float, ...]

    @property
    def mean_per_token(self) -> float | None:
        return sum(self.per_token) / len(self.per_token) if self.per_token else None


@dataclass(frozen=True)
class Piece:
    """A piece of an answer: text that will not change any more, and the tokens chosen since the piece before."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """A whole answer. `token_ids` are all tokens that were chosen, the one that ended it included; `text` is without
    the stop string or end token. `finish_reason`: a `stop` string or token, an `eos` token, the `length` asked for, the
    model's `context`, or the caller's `cancelled` or `deadline`."""

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    timings: Timings
