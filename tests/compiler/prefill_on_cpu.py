"""What do the templates for prompts compute under the interpreter of Triton? `prefill_on_cpu.py OUTPUT` writes the
outcome of each case as JSON. The interpreter is chosen as triton is imported, so it needs a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"

from hjgc.compiler.kernels import template
from tests.prefill_cases import CASES, AxisValues, Grid, check

ON_CPU = tuple(case for case in CASES if case.axes["dtype"] == "float16")
"""The interpreter has no product in bfloat16."""


def launch(name: str, axes: AxisValues, grid: Grid, arguments: list[Any]) -> None:
    declared = template(name)
    declared.function[grid](*arguments, **declared.constants(axes))


def main(output: Path) -> None:
    found = {case.name: dataclasses.asdict(check(case, template(case.template), launch, "cpu")) for case in ON_CPU}
    output.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
