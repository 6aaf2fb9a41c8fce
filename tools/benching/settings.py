"""What is measured, at which sizes and how often?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DEVICE_NAMES = ("contexts", "cold", "capturing", "rest", "launches")
"""Settings that only a measurement on a GPU has."""


@dataclass(frozen=True)
class Settings:
    """`lengths` of the prompts in tokens, `decode` further tokens for each, `repeat` warm answers for each. On a GPU
    also: `contexts` that decoding is measured at, `cold` lengths that a fresh process each begins with, `capturing`
    fresh processes watched while their graphs are built, `rest` milliseconds without work before each prompt,
    `launches` whether each kind of launch is timed."""

    lengths: tuple[int, ...]
    decode: int
    repeat: int
    threads: int
    seed: int
    vocabulary: int
    contexts: tuple[int, ...] = ()
    cold: int = 0
    capturing: int = 0
    rest: float = 0.0
    launches: bool = False

    def prompt(self, length: int) -> list[int]:
        """The same random tokens for every system and every repetition."""
        import numpy as np  # not for `hjgc bench --help`

        return np.random.default_rng([self.seed, length]).integers(0, self.vocabulary, length).tolist()

    def shown(self) -> dict[str, Any]:
        names = ("lengths", "decode", "repeat", "threads", "seed")
        return {name: _listed(getattr(self, name)) for name in names}

    def shown_on_a_device(self) -> dict[str, Any]:
        return self.shown() | {name: _listed(getattr(self, name)) for name in DEVICE_NAMES}


def spread(numbers: tuple[int, ...], count: int) -> tuple[int, ...]:
    """So many of them, evenly spread, the first and the last among them where there are two or more."""
    if count >= len(numbers):
        return numbers
    if count < 2:
        return numbers[:count]
    places = [round(i * (len(numbers) - 1) / (count - 1)) for i in range(count)]
    return tuple(numbers[place] for place in places)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
