"""What do the tests of the command line share?"""

from __future__ import annotations

from pathlib import Path

import pytest

from hjgc.models.export import export_model
from tests.models.checkpoints import write_checkpoint
from tests.tools.command_line import CommandLine, write_small_plan


@pytest.fixture
def hjgc(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_small_plan(tmp_path)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in ONNX beside its weights. Not to be changed."""
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), num_hidden_layers=1)
    export_model(folder, folder / "model.onnx")
    return folder / "model.onnx"
