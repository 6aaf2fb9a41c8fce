"""Do the templates for prompts mean on this GPU what their ops mean, with the same bits under every grid?"""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from hjgc.compiler.kernels import template
from tests.gpu.prefill_device import run
from tests.prefill_cases import CASES, Case, attention, check, inputs, product

TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3}

TILES = {"block_m": 128, "block_n": 128, "extra_n": 64, "warps": 8, "pdl": True}
HEAVY = TILES | {"extra_m": 64}
WHOLE = TILES | {"extra_n": 0}
SKINNY = {"block_m": 16, "block_n": 64, "block_k": 128, "swap": True, "pdl": True}
GATED = {"bias": False, "norm": False}
NORMED = SKINNY | {"swap": False, "bias": False, "norm": True}
SUM = {"bias": False, "residual": True}
ATTEND = {"block_m": 64, "block_n": 64, "pdl": True}
LARGE = (
    product("7B down", "prefill_linear", 4096, 11008, lengths=(129, 511), tokens=512, **SUM, **TILES),
    product("7B output, few rows", "prefill_linear", 4096, 4096, lengths=(3, 16), **SUM, **SKINNY),
    product("7B gated", "prefill_gated_linear", 22016, 4096, lengths=(200, 257), tokens=384, **GATED, **HEAVY),
    product("7B gated, few rows", "prefill_gated_linear", 22016, 4096, lengths=(10,), tokens=12, **NORMED),
    inputs("7B inputs", 32, 32, 128, 4096, lengths=(100, 128), tokens=128, capacity=600, start=70, **HEAVY),
    inputs("8B inputs", 32, 8, 128, 4096, lengths=(5, 17), tokens=24, capacity=600, head_norm=True, **WHOLE),
    attention("7B attention", 32, 32, 128, lengths=(1, 64, 65, 511), tokens=512, capacity=600, **ATTEND),
    attention("8B attention", 32, 8, 128, lengths=(33, 129), tokens=192, capacity=2049, start=1900, **ATTEND),
)


@pytest.mark.parametrize("case", (*CASES, *LARGE), ids=lambda case: case.name)
def test_a_template_means_its_op_at_every_length(case: Case) -> None:
    outcome = check(case, template(case.template), run, "cuda")
    assert outcome.error < TOLERANCE[str(case.axes["dtype"])]
    assert outcome.same
    assert outcome.untouched
