"""What becomes of a plan with islands that somebody broke on purpose, up to a call?"""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import TensorProto

from hjgc import HjgcError, PlanError, load
from hjgc.plan_format import load as open_plan_file
from hjgc.plan_format import save
from hjgc.plan_format.structs import Port
from tests.plan_format.files import take_apart, with_section
from tests.plan_format.function_plan import write_function_plan
from tests.plan_format.test_hostile import Bench, impatient, read_all, set_traps

CASES = 600
FEW = 40
"""Changes that happen to be legal, of CASES."""


@pytest.mark.skipif(not hasattr(signal, "SIGALRM") or not hasattr(os, "mkfifo"), reason="needs alarms and pipes")
def test_a_broken_function_is_refused_when_it_is_read_opened_or_called(tmp_path: Path) -> None:
    set_traps(tmp_path)
    source = write_function_plan(tmp_path)
    bench = Bench(tmp_path / "root", (source,))
    (bench.root / "model.onnx").write_bytes((tmp_path / "model.onnx").read_bytes())
    read_all(source, bench.root)
    for seed in range(CASES):
        accepted = len(bench.accepted)
        bench.try_case(seed)
        if len(bench.accepted) > accepted:
            with impatient(bench.accepted[-1]):
                call(bench.root / "plan.hjg")
    assert bench.refused > 0.9 * CASES
    assert len(bench.accepted) <= FEW, bench.accepted


def call(plan: Path) -> None:
    """It works, or says why not."""
    try:
        with load(plan) as function:
            function({port.name: some(port) for port in function.inputs})
    except HjgcError as error:
        assert len(str(error)) < 3000


def some(port: Port) -> Any:
    if port.type == "tensor(string)":
        return np.array(["a", "b"], object)
    return True if port.type == "tensor(bool)" else np.ones((2, 4), np.float32)


def test_another_sub_model_than_the_plan_names_is_refused(tmp_path: Path) -> None:
    plan = write_function_plan(tmp_path)
    parts = take_apart(plan)
    (section,) = (part.data for part in parts if part.kind == b"islands")
    plan.write_bytes(with_section(parts, b"islands", section.replace(b"Mul", b"Sub")))
    with pytest.raises(PlanError, match=r"\$\.islands\[0\]\.sha256: expected the sha256 that the plan names for isl"):
        load(plan)


def first_sub_model(plan: Path) -> onnx.ModelProto:
    with open_plan_file(plan) as file:
        island = file.plan.islands[0]
        return onnx.ModelProto.FromString(file.section("islands")[island.offset : island.offset + island.length])


def with_sub_model(source: Path, data: bytes, **fields: Any) -> Path:
    """The plan with another first island."""
    with open_plan_file(source) as file:
        plan, sections = file.plan, {kind: file.section(kind) for kind in ("constants", "islands")}
    behind = {"offset": len(sections["islands"]), "length": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    plan = replace(plan, islands=(replace(plan.islands[0], **behind, **fields), *plan.islands[1:]))
    save(source.with_name("hostile.hjg"), plan, sections=sections | {"islands": sections["islands"] + data})
    return source.with_name("hostile.hjg")


@pytest.mark.parametrize("spelling", [b"\x0a\x08location", b"\x0a\x88\x00location"])
def test_an_island_whose_data_lie_in_a_file_is_refused_and_the_file_left_alone(tmp_path: Path, spelling: bytes) -> None:
    """ONNX Runtime would read any file beside the process that it is named."""
    source = write_function_plan(tmp_path)
    outside = TensorProto(name="secret", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor = outside.SerializeToString() + wrapped(13, spelling + b"\x12\x0bweights.bin")
    data = first_sub_model(source).SerializeToString() + wrapped(7, wrapped(5, tensor))
    assert onnx.ModelProto.FromString(data).graph.initializer[-1].external_data[0].key == "location"
    with pytest.raises(
        PlanError, match=r"\$\.islands\[0\]: expected all data inside .* a tensor that names .* island\.0"
    ):
        load(with_sub_model(source, data))


def wrapped(number: int, content: bytes) -> bytes:
    """A short field of protobuf."""
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def test_an_island_that_begins_like_another_format_is_read_as_onnx(tmp_path: Path) -> None:
    """ONNX Runtime would else take bytes that nobody looked at for a model of its own format."""
    source = write_function_plan(tmp_path)
    data = wrapped(2, b"\0\0ORTM") + first_sub_model(source).SerializeToString()
    assert data[4:8] == b"ORTM"
    load(with_sub_model(source, data)).close()


def test_an_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime would leave the memory that is bound for it as it is."""
    source = write_function_plan(tmp_path)
    model = first_sub_model(source)
    model.graph.output[0].CopyFrom(model.graph.input[0])
    plan = with_sub_model(source, model.SerializeToString(), outputs=(model.graph.input[0].name,))
    with pytest.raises(PlanError, match=r"\$\.islands\[0\]\.outputs: expected outputs of other names than inputs"):
        load(plan)
