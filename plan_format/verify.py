"""Is this plan legal? Everything that types cannot say: indices, bounds, overlaps, order, and the sums of the ledger."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from hjgc.plan_format.checker import MAX_NAME, Checker, brief
from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.errors import PlanError
from hjgc.plan_format.ledger import make_ledger
from hjgc.plan_format.structs import (
    FEATURES,
    FORMAT_VERSION,
    CodeReference,
    DebugMap,
    Plan,
    Source,
    Variant,
    Weight,
    parameter_block,
)
from hjgc.plan_format.verify_phase import verify_phase

MAX_ELEMENTS = 1 << 40
TARGET = re.compile(r"cpu|sm_[0-9]{2,3}")
DIGEST = re.compile(r"[0-9a-f]{64}")


def verify(plan: Plan, section_lengths: Mapping[str, int], path: Path) -> None:
    """Check a whole plan against itself and the lengths of its other sections. Raises PlanError."""
    check = Checker(path)
    _check_header(plan, check)
    _check_files(plan, check)
    for i, weight in enumerate(plan.weights):
        _check_weight(plan, weight, f"$.weights[{i}]", check)
    _check_constants(plan, section_lengths.get("constants", 0), check)
    _check_states(plan, check)
    _check_variants(plan, section_lengths, check)
    check.unique_names((phase.name for phase in plan.phases), "$.phases")
    check.require(len(plan.phases) > 0, "$.phases", "at least one phase", "none")
    check.require(0 <= plan.arena_bytes < MAX_ELEMENTS, "$.arena_bytes", "0 to 1 TiB", plan.arena_bytes)
    for i, phase in enumerate(plan.phases):
        verify_phase(plan, phase, f"$.phases[{i}]", check)
    _check_ledger(plan, check)


def verify_debug(debug: DebugMap, plan: Plan, path: Path) -> None:
    """The debug map must speak of this plan's phases and launches. Raises PlanError."""
    check = Checker(path)
    expected = {phase.name: len(phase.launches) for phase in plan.phases}
    found = {phase.phase: len(phase.launches) for phase in debug.phases}
    check.require(found == expected and len(debug.phases) == len(found), "debug $.phases", f"{expected}", found)


def _check_header(plan: Plan, check: Checker) -> None:
    if plan.format != FORMAT_VERSION:
        raise PlanError(
            check.path,
            f"expected {FORMAT_VERSION}, found {brief(plan.format)}",
            field="$.format",
            next_step="compile the model again with this hjgc",
        )
    for i, feature in enumerate(plan.features):
        check.require(feature in FEATURES, f"$.features[{i}]", "a feature this hjgc understands", feature)
    check.require(len(plan.targets) > 0, "$.targets", "at least one target", "none")
    for i, target in enumerate(plan.targets):
        known = TARGET.fullmatch(target) is not None and target not in plan.targets[:i]
        check.require(known, f"$.targets[{i}]", "'cpu' or 'sm_NN', once each", target)
    check.require(plan.parameters == parameter_block(), "$.parameters", "the parameter block of this format", "another")
    model = plan.model
    for name, value in (("context", model.context), ("vocab_size", model.vocab_size), ("layers", model.layers)):
        check.require(0 <= value < 1 << 31, f"$.model.{name}", "0 to 2^31", value)
    ids = (*model.eos_ids, *(() if model.bos_id is None else (model.bos_id,)))
    for token in ids:
        check.require(0 <= token < 1 << 31, "$.model.eos_ids", "token ids", token)
    check.require(all(math.isfinite(v) for v in model.generation.values()), "$.model.generation", "numbers", "others")
    if model.tokenizer is not None:
        _check_file_name(model.tokenizer.name, "$.model.tokenizer.name", check)
        _check_digest(model.tokenizer.sha256, "$.model.tokenizer.sha256", check)


def _check_file_name(name: str, where: str, check: Checker) -> None:
    """A name that stays inside the weights root on any system."""
    parts = PurePosixPath(name).parts
    inside = bool(parts) and not name.startswith("/") and ".." not in parts and name.isprintable()
    plain = not any(sign in name for sign in ("\\", ":", "\0")) and len(name) <= MAX_NAME and name != "."
    check.require(inside and plain, where, "a relative name inside the weights root", name)


def _check_digest(digest: str, where: str, check: Checker) -> None:
    check.require(DIGEST.fullmatch(digest) is not None, where, "64 hexadecimal digits", digest)


def _check_files(plan: Plan, check: Checker) -> None:
    check.unique_names((file.name for file in plan.files), "$.files")
    for i, file in enumerate(plan.files):
        _check_file_name(file.name, f"$.files[{i}].name", check)
        check.require(0 < file.bytes < 1 << 50, f"$.files[{i}].bytes", "a file size", file.bytes)
        _check_digest(file.head_sha256, f"$.files[{i}].head_sha256", check)
        _check_digest(file.sample_sha256, f"$.files[{i}].sample_sha256", check)
        if file.sha256 is not None:
            _check_digest(file.sha256, f"$.files[{i}].sha256", check)


def elements(shape: Sequence[int], where: str, check: Checker) -> int:
    """The product of a shape, every axis at least 1 and the whole bounded."""
    check.require(len(shape) <= 8 and all(0 < axis < 1 << 32 for axis in shape), where, "up to 8 axes, 1 or more", shape)
    product = math.prod(shape)
    check.require(product < MAX_ELEMENTS, where, f"fewer than {MAX_ELEMENTS} elements", product)
    return product


def _check_weight(plan: Plan, weight: Weight, where: str, check: Checker) -> None:
    size = elements(weight.shape, f"{where}.shape", check) * ITEM_BYTES[weight.dtype]
    check.require(weight.bytes == size, f"{where}.bytes", f"{size} for its shape", weight.bytes)
    check.require(len(weight.sources) > 0, f"{where}.sources", "at least one", "none")
    rows = 0
    for i, source in enumerate(weight.sources):
        shape = _source_shape(plan, source, f"{where}.sources[{i}]", check)
        check.require(shape[1:] == weight.shape[1:], f"{where}.sources[{i}]", f"rows of {weight.shape[1:]}", shape[1:])
        rows += shape[0]
    check.require(rows == weight.shape[0], f"{where}.sources", f"{weight.shape[0]} rows in all", rows)


def _source_shape(plan: Plan, source: Source, where: str, check: Checker) -> tuple[int, ...]:
    check.index(source.file, plan.files, f"{where}.file")
    check.require(len(source.shape) in (1, 2), f"{where}.shape", "one or two axes", source.shape)
    size = elements(source.shape, f"{where}.shape", check) * ITEM_BYTES[source.dtype]
    check.require(source.length == size, f"{where}.length", f"{size} for its shape", source.length)
    end = plan.files[source.file].bytes - source.length
    check.require(0 <= source.offset <= end, f"{where}.offset", f"0 to {end}", source.offset)
    start = 0 if source.slice_start is None else source.slice_start
    stop = source.shape[0] if source.slice_stop is None else source.slice_stop
    check.require(0 <= start < stop <= source.shape[0], f"{where}.slice_start", "a slice of its rows", (start, stop))
    shape = (stop - start, *source.shape[1:])
    check.require(not source.transpose or len(shape) == 2, f"{where}.transpose", "two axes", shape)
    return shape[::-1] if source.transpose else shape


def _check_constants(plan: Plan, section: int, check: Checker) -> None:
    check.unique_names((entry.name for entry in (*plan.weights, *plan.constants, *plan.states)), "$.weights+constants")
    for i, constant in enumerate(plan.constants):
        where = f"$.constants[{i}]"
        size = elements(constant.shape, f"{where}.shape", check) * ITEM_BYTES[constant.dtype]
        check.require(constant.length == size, f"{where}.length", f"{size} for its shape", constant.length)
        end = section - size
        check.require(0 <= constant.offset <= end, f"{where}.offset", f"0 to {end}", constant.offset)


STATE_AXES = {"full_cache": 3, "ring_cache": 3, "token_history": 1, "sampled": 1, "logits": 2}


def _check_states(plan: Plan, check: Checker) -> None:
    for i, state in enumerate(plan.states):
        where = f"$.states[{i}]"
        size = elements(state.shape, f"{where}.shape", check) * ITEM_BYTES[state.dtype]
        check.require(state.bytes == size, f"{where}.bytes", f"{size} for its shape", state.bytes)
        axes = STATE_AXES.get(state.kind, len(state.shape))
        check.require(len(state.shape) == axes, f"{where}.shape", f"{axes} axes", state.shape)
        if state.kind in ("full_cache", "token_history"):
            rows = state.shape[1] if state.kind == "full_cache" else state.shape[0]
            check.require(rows > plan.model.context, f"{where}.shape", f"over {plan.model.context} rows", rows)
    for kind in ("token_history", "sampled", "logits"):
        count = sum(state.kind == kind for state in plan.states)
        check.require(count <= 1, "$.states", f"one {kind} at most", count)


def _check_variants(plan: Plan, lengths: Mapping[str, int], check: Checker) -> None:
    check.unique_names((template.name for template in plan.templates), "$.templates")
    for i, template in enumerate(plan.templates):
        _check_digest(template.digest, f"$.templates[{i}].digest", check)
    for i, variant in enumerate(plan.variants):
        _check_variant(plan, variant, lengths, f"$.variants[{i}]", check)


def _check_variant(plan: Plan, variant: Variant, lengths: Mapping[str, int], where: str, check: Checker) -> None:
    check.index(variant.template, plan.templates, f"{where}.template")
    check.require(variant.target in plan.targets, f"{where}.target", f"one of {plan.targets}", variant.target)
    axes = set(plan.templates[variant.template].axes)
    check.require(set(variant.axes) == axes, f"{where}.axes", f"{sorted(axes)}", sorted(variant.axes))
    check.require(re.fullmatch(r"\w{1,256}", variant.entry, re.ASCII) is not None, f"{where}.entry", "a symbol", variant.entry)
    check.require(variant.threads in (32, 64, 128, 256, 512, 1024), f"{where}.threads", "32 to 1024", variant.threads)
    check.require(0 <= variant.shared_bytes <= 1 << 20, f"{where}.shared_bytes", "up to 1 MiB", variant.shared_bytes)
    check.require(len(variant.parameters) <= 128, f"{where}.parameters", "up to 128", len(variant.parameters))
    _check_code(variant.code, lengths, f"{where}.code", check)


def _check_code(code: CodeReference, lengths: Mapping[str, int], where: str, check: Checker) -> None:
    section = lengths.get(code.section, 0)
    fits = 0 <= code.offset and 0 < code.length and code.offset + code.length <= section
    check.require(fits, where, f"a range inside the {code.section} section of {section}", (code.offset, code.length))
    _check_digest(code.sha256, f"{where}.sha256", check)


def _check_ledger(plan: Plan, check: Checker) -> None:
    expected = make_ledger(
        plan.weights, plan.arena_bytes, plan.states, plan.constants, plan.parameters, plan.phases
    )
    for name in expected.__struct_fields__:
        want, found = getattr(expected, name), getattr(plan.ledger, name)
        check.require(found == want, f"$.ledger.{name}", f"{want}", found)


