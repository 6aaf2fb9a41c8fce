"""How is each exporter called? As its users call it; each function leaves ONNX files in a folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from tests.exporters.checkpoints import MAJOR, load
from tests.exporters.flat import example


def dynamo(
    checkpoint: Path, out: Path, *, opset: int | None = None, dtype: str = "float32", attention: str = "sdpa",
    optimize: bool = True, external: bool = True, fixed: bool = False, **inputs: Any,
) -> None:  # fmt: skip
    """`torch.onnx.export(dynamo=True)` of a wrapper; `fixed` leaves no size free."""
    model = load(checkpoint, dtype, attention)
    given = example(model, **inputs)
    more: dict[str, Any] = {} if opset is None else {"opset_version": opset}
    more |= {} if fixed else {"dynamic_shapes": (given.axes,)}
    with torch.no_grad():
        program = torch.onnx.export(
            given.wrapper, given.tensors, dynamo=True, input_names=given.names, output_names=given.outputs,
            optimize=optimize, external_data=external, verbose=False, **more,
        )  # fmt: skip
    assert program is not None
    program.save(str(out / "model.onnx"), external_data=external)
    model.config.save_pretrained(out)


def torchscript(
    checkpoint: Path, out: Path, *, opset: int = 17, dtype: str = "float32", attention: str = "sdpa", **inputs: Any
) -> None:
    """`torch.onnx.export(dynamo=False)` of a wrapper."""
    with _masks_without_vmap():
        model = load(checkpoint, dtype, attention)
        given = example(model, **inputs)
        axes = {name: names for name, names in zip(given.names, given.axes, strict=True) if names}
        axes |= {name: {0: "batch_size", 2: "total_sequence_length"} for name in given.outputs[1:]}
        axes["logits"] = {0: "batch_size", 1: "sequence_length"}
        with torch.no_grad():
            torch.onnx.export(
                given.wrapper, given.tensors, str(out / "model.onnx"), dynamo=False, input_names=given.names,
                output_names=given.outputs, dynamic_axes=axes, opset_version=opset,
            )  # fmt: skip
        model.config.save_pretrained(out)


@contextmanager
def _masks_without_vmap() -> Generator[None]:
    """TorchScript cannot trace vmap, with which transformers 4 makes masks: optimum's own way round it."""
    if MAJOR >= 5:
        yield
        return
    masking: Any = import_module("transformers.masking_utils")
    patches: Any = import_module("optimum.exporters.onnx.model_patcher")
    functions = masking.ALL_MASK_ATTENTION_FUNCTIONS
    saved, packed = dict(functions._global_mapping), masking.find_packed_sequence_indices
    functions.register("sdpa", patches.sdpa_mask_without_vmap)
    functions.register("eager", patches.eager_mask_without_vmap)
    masking.find_packed_sequence_indices = torch.zeros_like
    try:
        yield
    finally:
        functions._global_mapping.update(saved)
        masking.find_packed_sequence_indices = packed


def optimum(
    checkpoint: Path, out: Path, *, arguments: Sequence[str] = (), task: str = "text-generation-with-past"
) -> None:
    program = str(Path(sys.executable).with_name("optimum-cli"))
    _run([program, "export", "onnx", "-m", str(checkpoint), "--task", task, *arguments, str(out)])


def optimum_merged(checkpoint: Path, out: Path) -> None:
    """Two decoders in one If, by optimum's own functions: its command line cannot be asked for it any more."""
    convert: Any = import_module("optimum.exporters.onnx.convert")
    tasks: Any = import_module("optimum.exporters.tasks").TasksManager
    model = load(checkpoint)
    make = tasks.get_exporter_config_constructor(
        "onnx", model_type=model.config.model_type, task="text-generation", library_name="transformers"
    )
    names, parts = ("decoder_model", "decoder_with_past_model"), out / "parts"
    parts.mkdir()
    halves = {name: (model, make(model.config, use_past=True, use_past_in_inputs="past" in name)) for name in names}
    convert.export_models(halves, parts, output_names=[f"{name}.onnx" for name in names], device="cpu")
    merge: Callable[..., object] = import_module("optimum.onnx").merge_decoders
    merge(*(str(parts / f"{name}.onnx") for name in names), save_path=str(out / "decoder_model_merged.onnx"))
    model.config.save_pretrained(out)


def genai(checkpoint: Path, out: Path, *, precision: str, device: str, options: Sequence[str] = ()) -> None:
    """The builder of onnxruntime-genai."""
    name = [] if MAJOR >= 5 else ["-m", checkpoint.name]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *name, "-i", str(checkpoint), "-o", str(out)]
    command += ["-p", precision, "-e", device, "-c", str(out / "cache")]
    _run([*command, *(["--extra_options", *options] if options else [])])
    shutil.copy(checkpoint / "config.json", out / "config.json")


def transformers_own(
    checkpoint: Path, out: Path, *, dtype: str = "float32", attention: str = "sdpa", whole: bool = False,
    static: bool = False, several: bool = False, padded: bool = False, **config: Any,
) -> None:  # fmt: skip
    """The OnnxExporter of transformers 5: prefill.onnx and decode.onnx, or, if `whole`, model.onnx. `several`: tokens a
    decode step. `padded`: with a mask, which the exporter drops where it is all ones."""
    exporters: Any = import_module("transformers.exporters.exporter_onnx")
    model, ids = load(checkpoint, dtype, attention), torch.arange(3, 17).reshape(2, 7)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if padded:
        inputs["attention_mask"][1, :2] = 0
    settings = exporters.OnnxConfig(**{"dynamic": True, **config})
    if whole:
        made = exporters.OnnxExporter().export(model, inputs, config=settings)
    else:
        cache = {"cache_implementation": "static", "max_cache_len": 64} if static else {}
        generation = import_module("transformers").GenerationConfig(max_new_tokens=4, **cache)
        made = exporters.OnnxExporter().export_for_generation(
            model, inputs, settings, generation_config=generation, multi_token_decode=several
        )
    made.save_pretrained(out)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it says nothing"])[-1])
