"""Are made-up inputs of the sizes, types and values that a function takes?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hjgc.plan_format import load
from hjgc.plan_format.errors import InputError
from hjgc.plan_format.structs import Phase
from hjgc.runtime.function import PHASE
from hjgc.tools.functions.made_up import call_sizes, make_inputs, spread_sizes
from tests.runtime.functions import write_function

TYPES = """types (float[N,3] x, float16[N] h, bfloat16[N] b, double d, int64[N] i, uint8[N] u, bool[N] t, string[N] s)
=> (float[N,3] y, float16[N] g, bfloat16[N] c, double e, int64[N] j, uint8[N] v, bool[N] f, string[N] w)
{ y = Neg(x) g = Neg(h) c = Neg(b) e = Neg(d) j = Neg(i) v = Identity(u) f = Not(t) w = Identity(s) }"""
TWO = "two (float[A,B] x) => (float[A,B] y) { y = Exp(x) }"
ONE = "one (float[N] x) => (float[N] y) { y = Exp(x) }"


def phase_of(folder: Path, text: str, **sizes: tuple[int, int]) -> Phase:
    with load(write_function(folder, text, sizes)) as file:
        return file.plan.phase(PHASE)


def test_each_input_has_its_type_and_its_shape(tmp_path: Path) -> None:
    made = make_inputs(phase_of(tmp_path, TYPES), {"N": 64}, 0)
    assert {name: (str(array.dtype), array.shape) for name, array in made.items() if name != "s"} == {
        "x": ("float32", (64, 3)), "h": ("float16", (64,)), "b": ("bfloat16", (64,)), "d": ("float64", ()),
        "i": ("int64", (64,)), "u": ("uint8", (64,)), "t": ("bool", (64,)),
    }  # fmt: skip
    assert abs(float(made["x"].mean())) < 0.5 and 0.5 < float(made["x"].std()) < 1.5
    for name in ("i", "u", "t"):
        assert set(made[name].tolist()) == {0, 1}
    assert set(made["s"].tolist()) == {"0", "1"}


def test_the_same_seed_and_sizes_give_the_same_numbers(tmp_path: Path) -> None:
    phase = phase_of(tmp_path, ONE)
    one, same, other = (make_inputs(phase, {"N": 4}, seed)["x"] for seed in (3, 3, 4))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_an_optional_is_left_out_and_a_sequence_is_not_made_up(tmp_path: Path) -> None:
    optional = "some (optional(float[N]) x) => (bool y) { y = OptionalHasElement(x) }"
    assert make_inputs(phase_of(tmp_path, optional), {}, 0) == {}
    sequence = "items (seq(float[N]) x, int64 i) => (float[N] y) { y = SequenceAt(x, i) }"
    with pytest.raises(InputError, match=r"found 'x' of type seq\(tensor\(float\)\), which cannot be made up"):
        make_inputs(phase_of(tmp_path, sequence), {"N": 1}, 0)


@pytest.mark.parametrize(
    ("range_of", "given", "expected"),
    [
        ((0, 64), {}, 64),
        ((0, 512), {}, 128),
        ((200, 512), {}, 200),
        ((0, 512), {"N": 3}, 3),
    ],
)
def test_a_measured_call_is_of_the_highest_size_or_128(
    range_of: Any, given: Any, expected: int, tmp_path: Path
) -> None:
    assert call_sizes(phase_of(tmp_path, ONE, N=range_of), given) == {"N": expected}


@pytest.mark.parametrize(
    ("sizes", "given", "expected"),
    [
        ({"A": (0, 512), "B": (2, 2)}, {}, [(1, 2), (128, 2), (256, 2)]),
        ({"A": (0, 512), "B": (0, 512)}, {}, [(1, 1), (11, 11), (22, 22)]),
        ({"A": (0, 8), "B": (0, 512)}, {}, [(1, 1), (4, 32), (8, 64)]),
        ({"A": (0, 8), "B": (0, 512)}, {"A": 2}, [(2, 1), (2, 256), (2, 512)]),
        ({"A": (600, 700), "B": (0, 0)}, {}, [(600, 0)]),
        ({"A": (600, 700), "B": (3, 9)}, {}, [(600, 3)]),
        ({"A": (4, 4), "B": (7, 7)}, {}, [(4, 7)]),
    ],
)
def test_compared_calls_are_low_middle_and_as_high_as_is_quickly_done(
    sizes: Any, given: Any, expected: Any, tmp_path: Path
) -> None:
    calls = spread_sizes(phase_of(tmp_path, TWO, **sizes), given)
    assert [(call["A"], call["B"]) for call in calls] == expected
