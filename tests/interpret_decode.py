"""Do the decode kernels mean what their ops mean, in Triton's interpreter, on a machine without a GPU?

A program, since Triton reads TRITON_INTERPRET when it is imported: it prints a line for each case that holds, and ends
with the first that does not. In float16: the interpreter has no product of bfloat16 matrices.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch

from hjgc.compiler.kernels import template
from hjgc.plan_format.structs import parameter_block
from tests import decode_cases
from tests.decode_cases import Case


def run(case: Case) -> tuple[dict[str, torch.Tensor], dict[str, int | float]]:
    """What the operands and the parameter block hold after the call."""
    declared = template(case.template)
    declared.check(case.axes)
    operands = {name: tensor.clone() for name, tensor in case.operands.items()}
    block = {field.name: field_tensor(case.fields[field.name], field.dtype) for field in parameter_block().fields}
    sources = {"operand": operands, "field": block, "attribute": case.attributes}
    arguments = [
        sources[parameter.source][parameter.name] if parameter.is_present(case.axes) else None
        for parameter in declared.parameters
    ]
    declared.function[decode_cases.grid(case)](*arguments, **declared.constants(case.axes))
    return operands, {name: tensor.item() for name, tensor in block.items()}


def field_tensor(value: float, dtype: str) -> torch.Tensor:
    """One field; the kernels take unsigned ones as the bits of signed ones."""
    data = np.array([value], dtype)
    return torch.from_numpy(data.view(np.int32) if dtype == "uint32" else data)


def main() -> None:
    for case in decode_cases.small_cases("float16"):
        operands, fields = run(case)
        decode_cases.assert_close(case, operands)
        right = decode_cases.expected(case)[1]
        assert (fields["start"], fields["length"]) == (right["start"], right["length"]), case.name
        if "counters" in operands:
            assert not operands["counters"].any(), case.name
        print(case.name)


if __name__ == "__main__":
    main()
