"""What do tests of functions share?"""

from __future__ import annotations

from typing import Any

import pytest

from hjgc.compiler.build_variants import DeviceCode, code_tables


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """What kernels are chosen is what matters: none is built."""

    def tables(keys: Any, progress: Any, ahead: Any) -> DeviceCode:
        del progress, ahead
        return code_tables(keys, {})

    monkeypatch.setattr("hjgc.compiler.pipeline.build_variants", tables)
