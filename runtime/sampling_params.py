"""How is the next token to be chosen, and when does an answer end?"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from hjgc.plan_format.errors import InputError
from hjgc.runtime.backend import LogitsProcessor

LARGEST_INT32 = (1 << 31) - 1
CHOICE = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float}
"""The fields that say how to choose: what a plan may carry as its model's own defaults, and (with the seed) what goes
into the parameter block."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose tokens, and where to stop. Raises InputError that names the field.

    In this order: `repetition_penalty` on tokens met before, `temperature` (0: always the best token), the `top_k` best
    (0: all), the fewest best that reach `top_p`, those with at least `min_p` times the best one's probability. The
    same `seed` gives the same answer; without one each request draws its own. `logits_processor(token_ids [L], logits
    [V])` runs on the host before each choice.

    An answer ends after `max_tokens` (None: as many as the context holds), before the first of the `stop` strings, at
    one of `stop_token_ids`, or at an end token of the model, unless `ignore_eos`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 256
    stop: str | Iterable[str] = ()
    stop_token_ids: Iterable[int] = ()
    ignore_eos: bool = False
    logits_processor: LogitsProcessor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _items("stop", [self.stop] if isinstance(self.stop, str) else self.stop))
        object.__setattr__(self, "stop_token_ids", _items("stop_token_ids", self.stop_token_ids))
        for field, (expected, legal) in RULES.items():
            value = getattr(self, field)
            if not legal(value):
                raise InputError("sampling parameters", f"expected {expected}, found {value!r}", field=field)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return tuple(self.stop)

    def values(self) -> dict[str, int | float]:
        """The sampling fields of the parameter block. Without a seed, another random one each call."""
        seed = secrets.randbits(64) if self.seed is None else int(self.seed)
        chosen: dict[str, int | float] = {name: kind(getattr(self, name)) for name, kind in CHOICE.items()}
        return chosen | {"seed_low": seed & 0xFFFFFFFF, "seed_high": seed >> 32}


def from_generation(defaults: Mapping[str, float]) -> SamplingParams:
    """The parameters that a plan's model asks for, the rest as in `SamplingParams()`; greedy if it asks for nothing.
    Raises InputError."""
    if not defaults:
        return SamplingParams(temperature=0.0)
    known: dict[str, Any] = {name: defaults[name] for name in CHOICE if name in defaults}
    if float(known.get("top_k", 0.5)).is_integer():
        known["top_k"] = int(known["top_k"])  # a plan writes all its defaults as floats
    return SamplingParams(**known)


def _items(field: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, Iterable):
        return tuple(value)  # pyright: ignore[reportUnknownVariableType]
    raise InputError("sampling parameters", f"expected a list, found {value!r}", field=field)


def _integer(value: Any, low: int, high: int) -> bool:
    """Numpy's integers are welcome; True and False are not meant as numbers."""
    return not isinstance(value, bool) and isinstance(value, Integral) and low <= int(value) <= high


def _number(value: Any, low: float, high: float) -> bool:
    """A NaN is in no range."""
    return not isinstance(value, bool) and isinstance(value, Real) and low <= float(value) <= high


def _none_or_integer(value: Any, low: int, high: int) -> bool:
    return value is None or _integer(value, low, high)


def _strings(value: tuple[Any, ...]) -> bool:
    return all(isinstance(item, str) and item for item in value)


# Bounds that float32 kernels can hold: the smallest temperature still divides logits into range.
RULES: dict[str, tuple[str, Any]] = {
    "temperature": ("0 (greedy) or a number from 0.001 to 1000", lambda v: _number(v, 0, 0) or _number(v, 1e-3, 1e3)),
    "top_k": ("0 (all) or a positive integer", lambda v: _integer(v, 0, LARGEST_INT32)),
    "top_p": ("a number over 0 and up to 1", lambda v: _number(v, 1e-9, 1.0)),
    "min_p": ("a number from 0 to 1", lambda v: _number(v, 0.0, 1.0)),
    "repetition_penalty": ("a number from 0.001 to 1000 (1: none)", lambda v: _number(v, 1e-3, 1e3)),
    "seed": ("None or an integer from 0 to 2^64 - 1", lambda v: _none_or_integer(v, 0, (1 << 64) - 1)),
    "max_tokens": ("None or a positive integer", lambda v: _none_or_integer(v, 1, LARGEST_INT32)),
    "stop": ("strings of at least one character", _strings),
    "stop_token_ids": ("token ids, 0 or more", lambda v: all(_integer(token, 0, LARGEST_INT32) for token in v)),
    "ignore_eos": ("True or False", lambda v: isinstance(v, bool)),
    "logits_processor": ("None or a function", lambda v: v is None or callable(v)),
}
