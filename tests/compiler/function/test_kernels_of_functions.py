"""Do the nodes of a function become kernels where it is compiled for a GPU, and islands where there are none?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

pytest.importorskip("triton")

from hjgc.compiler import compile_model
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.structs import DynamicSegment, Plan, TemplateCall
from tests.compiler.function.one_node import model_of, some


def compiled(folder: Path, op: str, *inputs: Any, **more: Any) -> Plan:
    path = folder / "model.onnx"
    onnx.save(model_of(op, inputs, **more), path)
    return compile_model(path, folder / "plan.hjg", targets=["sm_90"], kind="function", portable=False).plan


def test_a_node_of_open_sizes_is_a_kernel_that_is_told_the_sizes(tmp_path: Path) -> None:
    plan = compiled(tmp_path, "Transpose", some(2, 5, 8), shapes={0: ("batch", "rows", 8)}, perm=[0, 2, 1])
    (launch,) = plan.phases[0].launches
    call = launch.kernels["sm_90"]
    assert isinstance(call, TemplateCall)
    assert plan.templates[plan.variants[call.variant].template].name == "tensor_map"
    assert plan.variants[call.variant].parameters[2:4] == ("int32", "int32")


def test_a_node_without_a_kernel_is_an_island_that_says_why(tmp_path: Path) -> None:
    plan = compiled(tmp_path, "ConvTranspose", some(1, 3, 8, 8), some(3, 4, 3, 3), constants=(1,))
    found = [segment for schedule in plan.phases[0].schedules for segment in schedule.segments]
    reasons = [reason for segment in found if isinstance(segment, DynamicSegment) for reason in segment.reasons]
    assert [reason.code for reason in reasons] == [ReasonCode.NO_TEMPLATE]
    assert "on sm_90, no kernel computes conv_transpose" in str(reasons[0])
