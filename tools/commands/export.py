"""How does `hjgc export` turn a Hugging Face folder into an ONNX file?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hjgc.tools import console
from hjgc.tools.parameters import FILE, as_json, check_output, example

if TYPE_CHECKING:
    from hjgc.models.export import ExportResult


@click.command(
    short_help="Trace a Hugging Face folder into ONNX.",
    epilog=example("hjgc export models/demo -o demo.onnx --link hard"),
)
@click.argument("folder", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The ONNX file to write.")
@click.option(
    "--link",
    type=click.Choice(["hard", "copy"]),
    help="Place the weights beside the output first, as hard links or copies, for ONNX Runtime, which reads no weights "
    "above the ONNX file's folder and none through links that leave it.",
)
@as_json
def command(folder: Path, output: Path, link: Literal["hard", "copy"] | None, as_json: bool) -> None:
    """Trace a Hugging Face FOLDER (config.json and safetensors) into ONNX.

    No weight is read: the ONNX file points into the .safetensors files by offset and length."""
    check_output(output, source=folder, suffix=".onnx")
    from hjgc.models.export import export_model

    with console.stages() as tell:
        exported = export_model(folder, output, link=link, progress=tell)
    if as_json:
        console.result_json(as_data(exported))
    else:
        console.result(summary(exported))


def summary(exported: ExportResult) -> str:
    weights = f"{console.count(exported.parameters)} parameters ({console.size(exported.weight_bytes)})"
    files = ", ".join(str(path) for path in exported.weights)
    return f"{exported.output}: {exported.nodes} nodes, {weights} that stay in {files}"


def as_data(exported: ExportResult) -> dict[str, Any]:
    return {
        "output": str(exported.output),
        "nodes": exported.nodes,
        "parameters": exported.parameters,
        "weight_bytes": exported.weight_bytes,
        "weights": [str(path) for path in exported.weights],
    }
