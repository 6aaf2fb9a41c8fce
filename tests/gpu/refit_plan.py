"""How does a plan that was compiled beside one file of weights serve another of the same shapes?

    refit_plan.py PLAN FOLDER       write FOLDER/<name of PLAN>, for the files of the same names in FOLDER

A plan compiled from a sparse checkpoint on a small machine is measured on a large one, where random weights are drawn:
only the fingerprints differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from hjgc import plan_format
from hjgc.plan_format.container import KINDS
from hjgc.plan_format.fingerprint import fingerprint


def refit(source: Path, folder: Path) -> Path:
    with plan_format.load(source) as opened:
        plan, debug = opened.plan, opened.debug()
        sections = {kind: data for kind in KINDS[2:] if (data := opened.section(kind))}
    files = tuple(fingerprint(folder / file.name, file.name, digest=False) for file in plan.files)
    target = folder / source.name
    plan_format.save(target, msgspec.structs.replace(plan, files=files), debug=debug, sections=sections)
    return target


if __name__ == "__main__":
    print(refit(Path(sys.argv[1]), Path(sys.argv[2])))
