"""Which cases has ONNX's own backend suite, and what do they give and expect?"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
"""Not `real`, whose models are downloaded."""
DataSet = tuple[list[Any], list[Any]]
"""Inputs and outputs, in order."""


@cache
def all_cases() -> tuple[TestCase, ...]:
    """By name, each once."""
    os.environ["ALLOW_RELEASED_ONNX_OPSET_ONLY"] = "0"  # read while the models of nodes are made
    with warnings.catch_warnings(action="ignore"):  # of numpy, about numbers that are wanted
        found = {case.name: case for kind in KINDS for case in load_model_tests(kind=kind)}
    return tuple(found[name] for name in sorted(found))


def model_of(case: TestCase) -> onnx.ModelProto:
    return case.model if case.model is not None else onnx.load(_folder(case) / "model.onnx")


def data_sets(case: TestCase, model: onnx.ModelProto) -> Iterator[DataSet]:
    if case.data_sets is not None:
        yield from (([*map(_plain, given)], [*map(_plain, wanted)]) for given, wanted in case.data_sets)
        return
    for folder in sorted(_folder(case).glob("test_data_set*")):
        yield _stored(folder, "input", model.graph.input), _stored(folder, "output", model.graph.output)


def _folder(case: TestCase) -> Path:
    assert case.model_dir is not None, "a case that is stored"
    return Path(case.model_dir)


def _plain(item: Any) -> Any:
    return numpy_helper.to_array(item) if isinstance(item, onnx.TensorProto) else item


def _stored(folder: Path, end: str, declared: Any) -> list[Any]:
    """What lies in `input_0.pb`, `input_1.pb`, ...; models may declare more, which have values of their own."""
    files = [folder / f"{end}_{i}.pb" for i in range(len(list(folder.glob(f"{end}_*.pb"))))]
    return [_read(file, value.type) for file, value in zip(files, declared, strict=False)]


def _read(file: Path, kind: onnx.TypeProto) -> Any:
    data = file.read_bytes()
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))
