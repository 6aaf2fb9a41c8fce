"""Which cases of ONNX's backend suite does ONNX Runtime alone pass, and hjgc not?

    python -m tests.conformance.against_ort

It lists them and exits with 1 if there are any. Takes a minute.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import onnxruntime as ort
import torch
from onnx.backend.test.case.test_case import TestCase

from hjgc.runtime.ort_values import BITS, to_host, wrapped
from tests.conformance.cases import all_cases, data_sets, model_of
from tests.conformance.running import Result, check_outputs, run_case


def main() -> int:
    torch.set_num_threads(1)
    ort.set_default_logger_severity(4)
    behind = list(_behind())
    print("\n".join(behind) or "hjgc passes every case that ONNX Runtime passes")
    return 1 if behind else 0


def _behind() -> Iterator[str]:
    for case in all_cases():
        outcome = run_case(case)
        if outcome.result == Result.FAILED and _passes(case):
            yield f"{case.name}: {outcome.reason}"


def _passes(case: TestCase) -> bool:
    model = model_of(case)
    try:
        with warnings.catch_warnings(action="ignore"):
            session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            for given, wanted in data_sets(case, model):
                check_outputs(case, wanted, _run(session, model, given))
    except Exception:  # whatever it raises, the case is not passed
        return False
    return True


def _run(session: ort.InferenceSession, model: onnx.ModelProto, given: Sequence[Any]) -> list[Any]:
    """By its own values where numpy has not the types."""
    names = [value.name for value in model.graph.input]
    fed = dict(zip(names, given, strict=False))
    ends = [*model.graph.input, *model.graph.output]
    kinds = [value.type.tensor_type.elem_type for value in ends if value.type.HasField("tensor_type")]
    if len(kinds) < len(ends) or onnx.TensorProto.STRING in kinds or not BITS.keys() & set(kinds):
        return list(session.run(None, fed))
    values = {name: wrapped(ort, array) for name, array in fed.items()}
    return [to_host(value) for value in session.run_with_ort_values(None, values)]


if __name__ == "__main__":
    sys.exit(main())
