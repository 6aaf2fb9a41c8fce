"""Do the kernels of tensor ops mean what their ops mean, in Triton's interpreter, on a machine without a GPU?

A program, since Triton reads TRITON_INTERPRET when it is imported: it prints a line for each case that is wrong.
`tensor_on_cpu.py [WORD]`: of the cases whose names have the word.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"

from hjgc.compiler.kernels import template
from tests import product_cases, tensor_cases
from tests.tensor_cases import Grid, check

ON_CPU = tuple(case for case in (*tensor_cases.CASES, *product_cases.CASES) if not case.device)


def launch(name: str, axes: Mapping[str, Any], grid: Grid, arguments: list[Any]) -> None:
    declared = template(name)
    declared.function[grid](*arguments, **declared.constants(axes))


def main(word: str = "") -> None:
    warnings.simplefilter("ignore")  # the interpreter computes what is masked out, too
    for case in ON_CPU:
        if word in case.name:
            try:
                check(case, launch, "cpu", pdl=False)
            except Exception as error:  # whatever the interpreter, or a comparison, raises is this case's
                print(f"{case.name}: {type(error).__name__}: {' '.join(str(error).split())[:400]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
