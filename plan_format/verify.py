"""Is this plan legal? Everything that types cannot say: indices, bounds, overlaps, order, the sums of the ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from hjgc.plan_format.checker import Checker, brief
from hjgc.plan_format.chips import TARGET
from hjgc.plan_format.errors import PlanError
from hjgc.plan_format.ledger import make_ledger
from hjgc.plan_format.structs import FEATURES, FORMAT_VERSION, DebugMap, LaunchDebug, Plan, parameter_block
from hjgc.plan_format.verify_code import check_variants
from hjgc.plan_format.verify_phase import verify_phase
from hjgc.plan_format.verify_tables import (
    MAX_TABLE_BYTES,
    check_constants,
    check_digest,
    check_file_name,
    check_files,
    check_islands,
    check_states,
    check_table_names,
    check_weights,
)

FLOATS = ("float32", "float16", "bfloat16")
MAX_TOTAL_BYTES = 16 * MAX_TABLE_BYTES
MAX_PHASES = 16
MAX_FEW = 64
"""How many there may be of what a plan has few of: targets, options, generation settings."""


def verify(plan: Plan, section_lengths: Mapping[str, int], path: Path) -> None:
    """Check a whole plan against itself and the lengths of its other sections. Raises PlanError."""
    check = Checker(path)
    _check_version(plan, check)
    _check_header(plan, check)
    _check_model(plan, check)
    check_files(plan, check)
    check_table_names(plan, check)
    check_weights(plan, check)
    check_constants(plan, section_lengths.get("constants", 0), check)
    check_states(plan, check)
    check_islands(plan, section_lengths.get("islands", 0), check)
    check_variants(plan, section_lengths, check)
    fits = 0 <= plan.arena_bytes <= MAX_TABLE_BYTES
    check.require(fits, "$.arena_bytes", f"0 to {MAX_TABLE_BYTES}", plan.arena_bytes)
    _check_phases(plan, check)
    _check_ledger(plan, check)


def verify_debug(debug: DebugMap, plan: Plan, path: Path) -> None:
    """The debug map must speak of this plan's phases and launches. Raises PlanError."""
    check = Checker(path)
    expected = [(phase.name, len(phase.launches)) for phase in plan.phases]
    found = [(phase.phase, len(phase.launches)) for phase in debug.phases]
    check.require(found == expected, "debug $.phases", f"{brief(expected)} as in the plan", found)
    for i, phase in enumerate(debug.phases):
        for j, launch in enumerate(phase.launches):
            _check_debug_launch(launch, f"debug $.phases[{i}].launches[{j}]", check)
    for i, note in enumerate(debug.notes):
        for name in note.__struct_fields__:
            check.text(getattr(note, name), f"debug $.notes[{i}].{name}")


def _check_debug_launch(launch: LaunchDebug, where: str, check: Checker) -> None:
    for node in launch.nodes:
        check.text(node, f"{where}.nodes")
    for role, value in launch.values.items():
        check.text(role, f"{where}.values")
        check.text(value, f"{where}.values")


def _check_version(plan: Plan, check: Checker) -> None:
    if plan.format != FORMAT_VERSION:
        raise PlanError(
            check.path,
            f"expected {FORMAT_VERSION}, found {brief(plan.format)}",
            field="$.format",
            next_step="compile the model again with this hjgc",
        )
    check.count(plan.features, MAX_FEW, "$.features")
    for i, feature in enumerate(plan.features):
        known = feature in FEATURES and feature not in plan.features[:i]
        check.require(known, f"$.features[{i}]", f"one of {sorted(FEATURES)}, once each", feature)


def _check_header(plan: Plan, check: Checker) -> None:
    for name, text in (("hjgc", plan.producer.hjgc), ("onnx_producer", plan.producer.onnx_producer)):
        check.text(text, f"$.producer.{name}")
    check_digest(plan.producer.onnx_sha256, "$.producer.onnx_sha256", check)
    check.require(0 <= plan.producer.opset < 1 << 31, "$.producer.opset", "0 to 2^31", plan.producer.opset)
    _check_few(plan.producer.options, "$.producer.options", check)
    for name, value in plan.producer.options.items():
        check.text(value, f"$.producer.options.{name}")
    check.require(0 < len(plan.targets) <= MAX_FEW, "$.targets", f"1 to {MAX_FEW} targets", len(plan.targets))
    for i, target in enumerate(plan.targets):
        known = TARGET.fullmatch(target) is not None and target not in plan.targets[:i]
        check.require(known, f"$.targets[{i}]", "'cpu', 'sm_NN' or 'compute_NN', once each", target)
    for name in plan.dtypes.__struct_fields__:
        dtype = getattr(plan.dtypes, name)
        check.require(dtype in FLOATS, f"$.dtypes.{name}", f"one of {FLOATS}", dtype)
    check.require(plan.parameters == parameter_block(), "$.parameters", "the parameter block of this format", "another")


def _check_few(entries: Mapping[str, object], where: str, check: Checker) -> None:
    """A map of a few entries under printable names."""
    check.require(len(entries) <= MAX_FEW, where, f"at most {MAX_FEW} entries", len(entries))
    for name in entries:
        check.text(name, where)


def _check_model(plan: Plan, check: Checker) -> None:
    model = plan.model
    for name, text in (("name", model.name), ("architecture", model.architecture)):
        check.text(text, f"$.model.{name}")
    for name, value in (("context", model.context), ("vocab_size", model.vocab_size), ("layers", model.layers)):
        check.require(0 <= value < 1 << 31, f"$.model.{name}", "0 to 2^31", value)
    for i, token in enumerate(model.eos_ids):
        check.require(0 <= token < 1 << 31, f"$.model.eos_ids[{i}]", "a token id", token)
    bos = model.bos_id is None or 0 <= model.bos_id < 1 << 31
    check.require(bos, "$.model.bos_id", "a token id", model.bos_id)
    _check_few(model.generation, "$.model.generation", check)
    for name, value in model.generation.items():
        check.require(math.isfinite(value), f"$.model.generation.{name}", "a finite number", value)
    if model.tokenizer is not None:
        check_file_name(model.tokenizer.name, "$.model.tokenizer.name", check)
        check_digest(model.tokenizer.sha256, "$.model.tokenizer.sha256", check)


def _check_phases(plan: Plan, check: Checker) -> None:
    check.require(0 < len(plan.phases) <= MAX_PHASES, "$.phases", f"1 to {MAX_PHASES} phases", len(plan.phases))
    check.unique_names((phase.name for phase in plan.phases), "$.phases")
    kinds = {state.kind for state in plan.states}
    for i, phase in enumerate(plan.phases):
        verify_phase(plan, phase, f"$.phases[{i}]", check)
        named = phase.entry != "function" or "functions" in plan.features
        check.require(named, "$.features", "'functions', since a phase is one", plan.features)
        needs = {"token_history"} if phase.entry == "token" else set[str]()
        needs |= {"logits", "sampled"} if phase.logits_rows != "none" else set()
        missing = sorted(needs - kinds)
        if missing:
            check.fail(f"$.phases[{i}].entry", f"expected a state of kind {', '.join(missing)}, found none")


def _check_ledger(plan: Plan, check: Checker) -> None:
    expected = make_ledger(plan.weights, plan.arena_bytes, plan.states, plan.constants, plan.parameters, plan.phases)
    for name in expected.__struct_fields__:
        want, found = getattr(expected, name), getattr(plan.ledger, name)
        check.require(found == want, f"$.ledger.{name}", brief(want), found)
    total = plan.ledger.total
    check.require(total <= MAX_TOTAL_BYTES, "$.ledger.total", f"at most {MAX_TOTAL_BYTES}", total)
