"""Which plans do these tests read and break?"""

from __future__ import annotations

from pathlib import Path

import pytest

from hjgc.compiler import compile_model
from hjgc.models.export import export_model
from hjgc.plan_format import save
from tests.models.checkpoints import write_checkpoint
from tests.plan_format.device_plan import device_plan, device_sections, device_weights
from tests.plans import CONSTANTS, small_plan, weights_file


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan that the compiler made, beside its weights. Not to be changed."""
    folder = write_checkpoint(tmp_path_factory.mktemp("compiled"), variant="bias", num_hidden_layers=1)
    export_model(folder, folder / "model.onnx")
    compile_model(folder / "model.onnx", folder / "plan.hjg", prompt=(1, 32), context=64)
    return folder / "plan.hjg"


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan with templates, variants and code, beside its weights. Not to be changed."""
    folder = tmp_path_factory.mktemp("device")
    (folder / "norms.bin").write_bytes(device_weights())
    save(folder / "plan.hjg", device_plan(), sections=device_sections())
    return folder / "plan.hjg"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for the CPU written by hand, beside its weights. Not to be changed."""
    folder = tmp_path_factory.mktemp("small")
    plan = small_plan()
    (folder / "weights.bin").write_bytes(weights_file(plan))
    save(folder / "plan.hjg", plan, sections={"constants": CONSTANTS})
    return folder / "plan.hjg"
