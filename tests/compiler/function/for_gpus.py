"""What becomes of a model for a GPU, and is it still what ONNX Runtime computes?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import hjgc
from hjgc.compiler import compile_model

TOLERANCE = 1e-5
HALF_TOLERANCE = 4e-3


def checked(
    model: onnx.ModelProto,
    feed: Mapping[str, Any],
    folder: Path,
    *,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    tolerance: float = TOLERANCE,
) -> list[str]:
    """The launches, once the CPU gives by them what ONNX Runtime gives."""
    path = folder / "model.onnx"
    onnx.save_model(model, path)
    plan = compile_model(path, folder / "plan.hjg", targets=("cpu", "sm_90"), kind="function", sizes=sizes).plan
    wanted = ort.InferenceSession(str(path)).run(None, dict(feed))
    with hjgc.load(folder / "plan.hjg", device="cpu") as function:
        for found, right in zip(function(dict(feed)).values(), wanted, strict=True):
            right = np.asarray(right)
            assert (found.dtype, found.shape) == (right.dtype, right.shape)
            bound = HALF_TOLERANCE if right.dtype == np.float16 else tolerance
            np.testing.assert_allclose(found.astype(np.float32), right.astype(np.float32), rtol=bound, atol=bound)
    return [launch.op for launch in plan.phases[0].launches]
