"""Do the kernels of tensor ops mean on this GPU what their ops mean?"""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tests import product_cases, tensor_cases
from tests.gpu.prefill_device import driver, run
from tests.tensor_cases import Case, check


@pytest.mark.parametrize("case", (*tensor_cases.CASES, *product_cases.CASES), ids=lambda case: case.name)
def test_a_kernel_means_its_op_at_every_size(case: Case) -> None:
    check(case, run, "cuda", pdl=driver().target >= "sm_90")
