"""How does `hjgc run --feed` call a plan that is a function?"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.errors import InputError
from hjgc.plan_format.files import write_atomically
from hjgc.runtime.runner import spell_segments
from hjgc.tools import console
from hjgc.tools.parameters import check_output

SHOWN = 8
"""Numbers of an output that are printed."""


def call(
    plan: Path,
    feed: Path,
    output: Path | None,
    *,
    weights: Path | None,
    device: str | None,
    deadline: float | None,
    stats: bool,
    as_json: bool,
) -> None:
    """Call the function once and show, or write, what it gives. Raises InputError, PlanError, RunError."""
    from hjgc.runtime.opening import open_plan, start_function

    if output is not None:
        check_output(output, source=plan, suffix=".npz")
    inputs = read_arrays(feed)
    with console.stages() as tell:
        tell("load")
        opened = open_plan(plan, weights)
        if not opened.file.plan.is_function:
            opened.file.close()
            problem = "expected a plan that is a function, found a decoder"
            raise InputError(plan, problem, next_step="give it --prompt or --ids")
        function = start_function(opened, device=device, capture=False)  # one call has no use for graphs
        tell("call")
        with function:
            outputs = function(inputs, deadline=deadline)
            report = function.report()
    if output is not None:
        write_arrays(output, outputs)
    if as_json:
        console.result_json({"outputs": {name: _facts(value) for name, value in outputs.items()}, "report": report})
    else:
        console.result("\n".join(_line(name, value) for name, value in outputs.items()))
    if stats:
        console.note("\n".join(stats_lines(report)))


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file by name. Raises InputError."""
    step = "see numpy.savez"
    if not path.exists():
        raise InputError(path, "expected a file of arrays, found nothing there", next_step=step)
    if not zipfile.is_zipfile(path):
        raise InputError(path, "expected arrays by name (.npz), found no archive", next_step=step)
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        words = " ".join(str(error).partition(".")[0].split())[:200]
        raise InputError(path, f"expected arrays by name (.npz), found one damaged: {words}", next_step=step) from None


def write_arrays(path: Path, outputs: Mapping[str, Any]) -> None:
    """Those outputs that are arrays; of a sequence each item, as `name.0`, `name.1`, ... Of a type that numpy has not
    the bits, which a function takes too."""
    arrays: dict[str, Any] = {}
    for name, value in outputs.items():
        if isinstance(value, list):
            arrays |= {f"{name}.{i}": np.asarray(item) for i, item in enumerate(value)}
        elif value is not None:
            arrays[name] = np.asarray(value)
    arrays = {name: _storable(array) for name, array in arrays.items()}
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:  # numpy.savez keeps names such as `file` for itself
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    write_atomically(path, data.getvalue())


def _storable(array: NDArray[Any]) -> NDArray[Any]:
    """Text as numpy keeps it in files, and bits of what it could not read again."""
    if array.dtype == object:
        return array.astype(str)
    return array.view(f"uint{8 * array.dtype.itemsize}") if array.dtype.kind == "V" else array


def _facts(value: Any) -> dict[str, Any]:
    if value is None or isinstance(value, list):
        return {"items": None if value is None else len(value)}
    array = np.asarray(value)
    return {"dtype": str(array.dtype), "shape": list(array.shape)}


def _line(name: str, value: Any) -> str:
    if value is None:
        return f"{name}: nothing"
    if isinstance(value, list):
        return f"{name}: {len(value)} items"
    array = np.asarray(value)
    numbers = ", ".join(str(item) for item in array.reshape(-1)[:SHOWN])
    rest = ", ..." if array.size > SHOWN else ""
    return f"{name}: {array.dtype} {list(array.shape)}: {numbers}{rest}"


def stats_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Each segment: what it is, how it ran, and why it cannot be captured; then what islands took."""
    for segment in report["segments"]:
        runs = segment["plain_runs"] if segment["kind"] == "static" else segment["runs"]
        reasons = segment.get("reasons", ())
        why = "".join(f"; {reason['code']}: {' <- '.join(reason['chain'])}" for reason in reasons)
        number = spell_segments(segment["segment"], segment.get("last_segment", segment["segment"]))
        yield f"segment {number}, {segment['kind']}, {segment['launches']} launches: {runs} runs{why}"
    if report["islands"] is not None:
        yield f"islands: {1000 * report['islands']['run_seconds']:.3f} ms"
        for why, count in report["islands"]["on_host"].items():
            yield f"  {count} on the host: {why}"
