"""How does a model become a plan? Each line takes named values and makes one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hjgc import plan_format
from hjgc._version import __version__
from hjgc.compiler import dump
from hjgc.compiler.build_variants import build_variants
from hjgc.compiler.classify import classify, describe
from hjgc.compiler.config_check import disagreements
from hjgc.compiler.emit import CompiledPhase, emit, emit_debug
from hjgc.compiler.errors import CallerError, NoDecoder
from hjgc.compiler.function.islands import try_islands
from hjgc.compiler.function.network import build_function
from hjgc.compiler.function.network import normalise as normalise_function
from hjgc.compiler.import_model import ImportedModel, import_folder, import_onnx
from hjgc.compiler.lower import lower
from hjgc.compiler.model_info import read_model_info
from hjgc.compiler.normalise import normalise
from hjgc.compiler.options import Options, check_options
from hjgc.compiler.plan_memory import plan_memory
from hjgc.compiler.program import Network, Program
from hjgc.compiler.recognise import recognise
from hjgc.compiler.segment import segment
from hjgc.compiler.select_kernels import Selector, kernels_text
from hjgc.compiler.specialise import specialise
from hjgc.plan_format.errors import CompileError, InputError
from hjgc.plan_format.fingerprint import file_under_root, fingerprint
from hjgc.plan_format.structs import Model, Note, Plan, Producer, WeightFile
from hjgc.plan_format.text import render
from hjgc.plan_format.verify_tables import MAX_TABLE_BYTES

SMALL_WEIGHTS_BYTES = 1 << 30
"""Weights up to this size are digested whole at compile time (a second or less); larger ones on request."""

Progress = Callable[[str], None]
Kind = Literal["decoder", "function"]


@dataclass(frozen=True)
class CompileResult:
    """The plan, where it was written, its size in bytes, the seconds each stage took, and what the user should know."""

    plan: Plan
    path: Path
    bytes: int
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()


@dataclass
class _Stages:
    """Announces and times the stages."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        self.progress(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 4)


def compile_model(
    model: str | Path,
    output: str | Path,
    *,
    targets: Sequence[str] = ("cpu",),
    prompt: tuple[int, int] | None = None,
    context: int | None = None,
    dtype: str | None = None,
    digest: bool = False,
    portable: bool = True,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    kind: Kind | None = None,
    progress: Progress | None = None,
) -> CompileResult:
    """Compile an ONNX model, or a Hugging Face folder, into a plan file. Reads no weight, needs no GPU.

    A decoder that hjgc recognises is served token by token; any other model becomes a function of its inputs. `kind`
    asks for one of the two. `sizes` are the ranges of the axes that a function's inputs leave open, by name.

    `prompt` is the range of prompt lengths in tokens (None: 1 to 512, or to the context), `context` prompt and answer
    together, `dtype` that of weights and arithmetic (float32, float16, bfloat16), `digest` adds the sha256 of every
    weight file; `portable` adds, beside code for a GPU, code that other GPUs can run. The same input gives the same
    bytes. Raises InputError, CompileError; the output appears whole or not at all."""
    path, output = Path(model), Path(output)
    options = check_options(tuple(targets), prompt, context, dtype, digest, portable, sizes)
    _check_output(output, path)
    stages, dumper = _Stages(progress or (lambda _: None)), dump.Dumper()

    (imported, network, weight_paths, rule_notes), notes = _front(path, options, kind, stages, dumper)
    with stages.stage("lower"):
        network = lower(network, options.targets)
        dumper.write("lower", lambda: "".join(dump.program_text(program) for program in network.programs))
    with stages.stage("classify"):
        verdicts = [classify(program) for program in network.programs]
        dumper.write("classify", lambda: "".join(map(describe, network.programs, verdicts)))
    with stages.stage("plan_memory"):
        memories = [plan_memory(program) for program in network.programs]
        _check_arena(max(memory.bytes for memory in memories), path)
        dumper.write("plan_memory", lambda: "".join(map(dump.memory_text, network.programs, memories)))
    with stages.stage("segment"):
        schedules = [segment(program, verdict) for program, verdict in zip(network.programs, verdicts, strict=True)]
        dumper.write("segment", lambda: "".join(map(dump.schedules_text, network.programs, schedules)))
    with stages.stage("select_kernels"):
        selector = Selector(options.targets, network.dtypes, path, options.prompt[1])
        kernels = [selector.select(program) for program in network.programs]
        phases = tuple(map(CompiledPhase, network.programs, memories, schedules, kernels))
        dumper.write("select_kernels", lambda: kernels_text(network.programs, kernels, selector.variants))
    with stages.stage("build"):
        code = build_variants(selector.variants, stages.progress, selector.ahead)
    with stages.stage("fingerprint"):
        root, root_notes = _weights_root(weight_paths, imported.root, output)
        files = _fingerprints(weight_paths, root, options, path, output)
    with stages.stage("emit"):
        plan = emit(
            network,
            phases,
            producer=_producer(imported, options, network),
            model=_model_info(imported, network, root),
            targets=options.targets,
            files=files,
            code=code,
        )
        debug = emit_debug(network.programs, rule_notes)
        dumper.write("emit", lambda: render(plan))
    with stages.stage("verify"):
        inside = {"constants": network.constant_bytes, "islands": network.island_bytes}
        sections = {**inside, **dict(code.sections)}
        plan_format.save(output, plan, debug=debug, sections=sections)
    notes += root_notes + network.notes
    if network.vocab_size:
        notes += _folder_notes(imported, root) + disagreements(_model_folder(imported), network)
    return CompileResult(plan, output, output.stat().st_size, stages.seconds, notes)


_Front = tuple[ImportedModel, Network, list[Path], tuple[Note, ...]]
"""What the stages up to the network leave: the model, the network, its weight files, the rules that almost fired."""


def _front(
    path: Path, options: Options, kind: Kind | None, stages: _Stages, dumper: dump.Dumper
) -> tuple[_Front, tuple[str, ...]]:
    """As a decoder if it is one, else as a function, and a note that says why. Raises CompileError where neither can
    be: of what takes token ids and gives logits, the decoder's."""
    if kind == "function":
        return _as_function(path, options, stages, dumper), ()
    try:
        return _as_decoder(path, options, stages, dumper), ()
    except CompileError as error:
        why = error
    if kind == "decoder" or isinstance(why, CallerError):
        raise why
    dumper.restart()
    try:
        front = _as_function(path, options, stages, dumper)
    except CompileError:
        if isinstance(why, NoDecoder):
            raise
        raise why from None
    return front, (f"compiled as a function, not as a decoder that is served token by token: {why}",)


def _as_decoder(path: Path, options: Options, stages: _Stages, dumper: dump.Dumper) -> _Front:
    with stages.stage("import"):
        imported = import_folder(path) if os.path.isdir(path) else import_onnx(path)
        dumper.write("import", lambda: dump.graph_text(imported.model))
    with stages.stage("normalise"):
        graph = normalise(imported.model, path)
        dumper.write("normalise", lambda: dump.graph_text(graph))
    with stages.stage("recognise"):
        recognised = recognise(graph, path)
        dumper.write("recognise", lambda: dump.graph_text(recognised.model))
    with stages.stage("specialise"):
        network, weight_paths = specialise(recognised, options, path)
        dumper.write("specialise", lambda: "".join(dump.program_text(program) for program in network.programs))
    return imported, network, weight_paths, recognised.notes


def _as_function(path: Path, options: Options, stages: _Stages, dumper: dump.Dumper) -> _Front:
    with stages.stage("import"):
        imported = import_folder(path) if os.path.isdir(path) else import_onnx(path, function=True)
        dumper.write("import", lambda: dump.graph_text(imported.model))
    with stages.stage("normalise"):
        graph = normalise_function(imported.model, path)
        dumper.write("normalise", lambda: dump.graph_text(graph))
    with stages.stage("lift"):
        network, weight_paths = build_function(graph, options, path)
        dumper.write("lift", lambda: "".join(dump.program_text(program) for program in network.programs))
    with stages.stage("islands"):
        try_islands(network, path)
    return imported, network, weight_paths, ()


def _check_arena(size: int, path: Path) -> None:
    """Raises CompileError for activations that no device has room for."""
    if size > MAX_TABLE_BYTES:
        problem = f"expected activations of up to {MAX_TABLE_BYTES} bytes at the largest sizes, found {size}"
        raise CompileError(path, problem, next_step="compile with smaller ranges: --size NAME=LOW:HIGH")


def _check_output(output: Path, model: Path) -> None:
    """Refuse at once what would be refused at the end, or would replace what is read. Raises InputError."""
    if os.path.isdir(output):  # unlike Path.is_dir, says no to a name that cannot be one
        raise InputError(output, "expected a file to write, found a folder", next_step="name a file in it")
    if not os.path.isdir(output.parent):
        problem = f"expected a folder to write into, found none at {output.parent}"
        raise InputError(output, problem, next_step="make the folder, or choose another output path")
    _check_apart(output, model)


def _check_apart(output: Path, source: Path) -> None:
    if os.path.exists(output) and os.path.exists(source) and output.samefile(source):
        problem = "expected an output of its own, found a file that the plan is made from"
        raise InputError(output, problem, next_step="choose another output path")


def _weights_root(paths: list[Path], model_root: Path, output: Path) -> tuple[Path, tuple[str, ...]]:
    """The plan's folder if every weight lies inside it, else the model's."""
    beside = output.parent.resolve()
    if all(_place(path).is_relative_to(beside) for path in paths):
        return beside, ()
    note = f"the weights lie in {model_root}, not beside the plan: give it at load (`--weights {model_root}`)"
    return model_root.resolve(), (note,)


def _place(path: Path) -> Path:
    """Where a file lies, its own name not followed if it is a link."""
    return path.parent.resolve() / path.name


def _fingerprints(paths: list[Path], root: Path, options: Options, model: Path, output: Path) -> tuple[WeightFile, ...]:
    """Where each file lies under `root`, and what tells it from others. Refuses what a session would refuse."""
    sizes = sum(path.stat().st_size for path in paths)
    digest = options.digest or sizes <= SMALL_WEIGHTS_BYTES
    files: list[WeightFile] = []
    for path in paths:
        _check_apart(output, path)
        place = _place(path)
        if not place.is_relative_to(root):
            problem = f"expected every weight file inside {root}, found it elsewhere"
            raise InputError(path, problem, next_step="put the weights beside the model")
        name = place.relative_to(root).as_posix()
        files.append(fingerprint(file_under_root(name, root, model, "external data"), name, digest=digest))
    return tuple(files)


def _producer(imported: ImportedModel, options: Options, network: Network) -> Producer:
    model = imported.model
    chosen = {
        "prompt": f"{options.prompt[0]}:{options.prompt[1]}",
        "context": str(_context(network.programs)),
        "dtype": network.dtypes.compute,
        "targets": ",".join(options.targets),
    }
    onnx_producer = f"{model.producer_name or 'unknown'} {model.producer_version or ''}".strip()
    return Producer(__version__, onnx_producer, imported.sha256, model.opset_imports.get("", 0), chosen)


def _context(programs: tuple[Program, ...]) -> int:
    """Tokens that the cache holds; a function has none."""
    return next((size.high for size in programs[0].sizes if size.name == "start"), 0)


def _model_info(imported: ImportedModel, network: Network, root: Path) -> Model:
    properties = imported.model.metadata_props
    if not network.vocab_size:
        return Model(imported.name, "function", 0, 0, 0)
    return read_model_info(
        _model_folder(imported),
        root,
        name=imported.name,
        architecture=properties.get("hjgc.model_type", "decoder"),
        vocab=network.vocab_size,
        context=_context(network.programs),
        layers=network.layers,
    )


def _model_folder(imported: ImportedModel) -> Path | None:
    """Where the tokenizer and its makers' choices lie; None if that is said to be outside the model's folder."""
    folder = imported.root / imported.model.metadata_props.get("hjgc.folder", ".")
    return folder if folder.resolve().is_relative_to(imported.root.resolve()) else None


def _folder_notes(imported: ImportedModel, root: Path) -> tuple[str, ...]:
    """What the plan had to leave out."""
    folder = _model_folder(imported)
    if folder is None:
        named = imported.model.metadata_props["hjgc.folder"]
        return (f"the tokenizer and end tokens in {named} are left out, since it lies outside {imported.root}",)
    if (folder / "tokenizer.json").is_file() and not folder.resolve().is_relative_to(root.resolve()):
        return (f"the tokenizer in {folder} is left out, since it lies outside the weights root {root}",)
    return ()
