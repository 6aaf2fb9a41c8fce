"""Do weights, constants and states have the sizes that they claim, out of files that stay inside the weights root?"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from hjgc.plan_format.checker import MAX_NAME, Checker
from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.quantised import grid, row_bytes, zero_row_bytes
from hjgc.plan_format.structs import Blocks, Part, Plan, Source, State, Weight, WeightFile

MAX_BLOCK = 1 << 16
MAX_COLUMNS = 1 << 20
"""Of a quantised source: a row of them is dequantised at a time."""
MAX_TABLE_BYTES = 1 << 40
MAX_AXES = 8
MAX_ISLANDS = 1 << 16
MAX_WIDENING = 8
"""Packed weights may take this many times the bytes of the files: conversion to a wider type, and tied embeddings."""
DIGEST = re.compile(r"[0-9a-f]{64}")
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""What Windows takes for a device, whatever the folder."""
STATE_AXES = {"full_cache": 3, "ring_cache": 3, "token_history": 1, "sampled": 1, "logits": 2, "counters": 1}
STATE_NAMES = {"token_history": "history", "sampled": "sampled", "logits": "logits"}
"""Kinds of state that go by one name, so that a plan has one of them at most."""


def check_files(plan: Plan, check: Checker) -> None:
    check.unique_names((file.name for file in plan.files), "$.files")
    for i, file in enumerate(plan.files):
        _check_file(file, f"$.files[{i}]", check)


def _check_file(file: WeightFile, where: str, check: Checker) -> None:
    check_file_name(file.name, f"{where}.name", check)
    check.require(0 < file.bytes < 1 << 50, f"{where}.bytes", "a file size", file.bytes)
    check_digest(file.head_sha256, f"{where}.head_sha256", check)
    check_digest(file.sample_sha256, f"{where}.sample_sha256", check)
    if file.sha256 is not None:
        check_digest(file.sha256, f"{where}.sha256", check)


def check_file_name(name: str, where: str, check: Checker) -> None:
    """A name that stays inside the weights root, and is no device, on any system."""
    plain = name.isprintable() and len(name) <= MAX_NAME and not any(sign in name for sign in '\\:*?"<>|')
    inside = plain and all(_is_plain_part(part) for part in name.split("/"))
    check.require(inside, where, "a relative name inside the weights root", name)


def _is_plain_part(part: str) -> bool:
    return bool(part) and part == part.strip(" ") and not part.endswith(".") and RESERVED.fullmatch(part) is None


def check_digest(digest: str, where: str, check: Checker) -> None:
    check.require(DIGEST.fullmatch(digest) is not None, where, "64 hexadecimal digits", digest)


def _bytes(shape: Sequence[int], dtype: str, where: str, check: Checker, least: int = 1) -> int:
    """What a shape takes, every axis at least `least` and the whole bounded."""
    sane = len(shape) <= MAX_AXES and all(least <= axis < 1 << 32 for axis in shape)
    check.require(sane, where, f"up to {MAX_AXES} axes, each {least} or more", shape)
    size = math.prod(shape) * ITEM_BYTES[dtype]
    check.require(size <= MAX_TABLE_BYTES, where, f"at most {MAX_TABLE_BYTES} bytes", size)
    return size


def check_weights(plan: Plan, check: Checker) -> None:
    for i, weight in enumerate(plan.weights):
        _check_weight(plan, weight, f"$.weights[{i}]", check)
    limit = MAX_WIDENING * sum(file.bytes for file in plan.files)
    total = sum(weight.bytes for weight in plan.weights)
    check.require(total <= limit, "$.weights", f"at most {MAX_WIDENING} times the bytes of the files", total)


def _check_weight(plan: Plan, weight: Weight, where: str, check: Checker) -> None:
    size = _bytes(weight.shape, weight.dtype, f"{where}.shape", check)
    _check_rank(plan, weight.shape, f"{where}.shape", check)
    check.require(weight.bytes == size, f"{where}.bytes", f"{size} for its shape", weight.bytes)
    if weight.placement != "cpu" or not plan.islands:  # islands may have weights of their own on the host
        check_placement(weight.placement, where, check)
    check.require(len(weight.sources) > 0, f"{where}.sources", "at least one", "none")
    rows = 0
    for i, source in enumerate(weight.sources):
        shape = _source_shape(plan, source, f"{where}.sources[{i}]", check)
        if shape[1:] != weight.shape[1:]:
            check.fail(f"{where}.sources[{i}]", f"expected rows of {weight.shape[1:]}, found {shape[1:]}")
        rows += shape[0]
    check.require(rows == weight.shape[0], f"{where}.sources", f"{weight.shape[0]} rows in all", rows)


def _check_rank(plan: Plan, shape: Sequence[int], where: str, check: Checker) -> None:
    """Decoders have vectors and matrices; weights of functions and islands have any number of axes."""
    if plan.islands or "functions" in plan.features:
        check.require(len(shape) > 0, where, "an axis or more", shape)
    else:
        check.require(len(shape) in (1, 2), where, "one or two axes", shape)


def _source_shape(plan: Plan, source: Source, where: str, check: Checker) -> tuple[int, ...]:
    """The shape that the source adds, sliced and transposed."""
    check.index(source.file, plan.files, f"{where}.file")
    size = _bytes(source.shape, source.dtype, f"{where}.shape", check)
    _check_rank(plan, source.shape, f"{where}.shape", check)
    if source.blocks is not None:
        size = _check_blocks(plan, source, source.blocks, where, check)
    check.require(source.length == size, f"{where}.length", f"{size} for its shape", source.length)
    end = plan.files[source.file].bytes - source.length
    check.require(0 <= source.offset <= end, f"{where}.offset", f"0 to {end}", source.offset)
    start = 0 if source.slice_start is None else source.slice_start
    stop = source.shape[0] if source.slice_stop is None else source.slice_stop
    check.require(0 <= start < stop <= source.shape[0], f"{where}.slice_start", "a slice of its rows", (start, stop))
    shape = (stop - start, *source.shape[1:])
    check.require(not source.transpose or len(shape) == 2, f"{where}.transpose", "two axes", shape)
    return shape[::-1] if source.transpose else shape


def _check_blocks(plan: Plan, source: Source, blocks: Blocks, where: str, check: Checker) -> int:
    """How many bytes the numbers take."""
    check.require("quantised_sources" in plan.features, f"{where}.blocks", "the feature quantised_sources", "none")
    check.require(source.dtype == "uint8", f"{where}.dtype", "uint8 for a quantised source", source.dtype)
    check.require(len(source.shape) == 2, f"{where}.shape", "two axes of a quantised source", source.shape)
    check.require(source.shape[1] <= MAX_COLUMNS, f"{where}.shape", f"at most {MAX_COLUMNS} columns", source.shape)
    check.require(1 <= blocks.size <= MAX_BLOCK, f"{where}.blocks.size", f"1 to {MAX_BLOCK}", blocks.size)
    whole = (blocks.size if blocks.axis == 1 else source.shape[1]) * blocks.bits % 8 == 0
    check.require(whole, f"{where}.blocks.size", "rows of whole bytes", f"blocks of {blocks.size} along {blocks.axis}")
    rows, columns = grid(source, blocks)
    floats = blocks.scales.dtype in ("float32", "float16", "bfloat16")
    check.require(floats, f"{where}.blocks.scales.dtype", "a floating-point type", blocks.scales.dtype)
    scales = rows * columns * ITEM_BYTES[blocks.scales.dtype]
    _check_part(plan, blocks.scales, scales, f"{where}.blocks.scales", check)
    if blocks.zeros is not None:
        check.require(blocks.zeros.dtype == "uint8", f"{where}.blocks.zeros.dtype", "uint8", blocks.zeros.dtype)
        _check_part(plan, blocks.zeros, rows * zero_row_bytes(source, blocks), f"{where}.blocks.zeros", check)
    return source.shape[0] * row_bytes(source, blocks)


def _check_part(plan: Plan, part: Part, size: int, where: str, check: Checker) -> None:
    check.index(part.file, plan.files, f"{where}.file")
    check.require(part.length == size, f"{where}.length", f"{size} for its source", part.length)
    end = plan.files[part.file].bytes - part.length
    check.require(0 <= part.offset <= end, f"{where}.offset", f"0 to {end}", part.offset)


def check_placement(placement: str, where: str, check: Checker) -> None:
    """The format has room for more; this hjgc would put all of it on the device, and does not pretend otherwise."""
    check.require(placement == "device", f"{where}.placement", "'device', all that this hjgc serves", placement)


def check_table_names(plan: Plan, check: Checker) -> None:
    """No two of what outlives a step share a name."""
    seen: set[str] = set()
    check.unique_names((weight.name for weight in plan.weights), "$.weights", seen)
    check.unique_names((constant.name for constant in plan.constants), "$.constants", seen)
    check.unique_names((state.name for state in plan.states), "$.states", seen)


def check_constants(plan: Plan, section: int, check: Checker) -> None:
    for i, constant in enumerate(plan.constants):
        where = f"$.constants[{i}]"
        size = _bytes(constant.shape, constant.dtype, f"{where}.shape", check, 0)
        check.require(constant.length == size, f"{where}.length", f"{size} for its shape", constant.length)
        end = section - size
        check.require(0 <= constant.offset <= end, f"{where}.offset", f"0 to {end}", constant.offset)


def check_islands(plan: Plan, section: int, check: Checker) -> None:
    """Where each sub-model lies, and that what it is called by is text. ONNX Runtime reads it when a session opens."""
    needed = "islands" in plan.features or not plan.islands
    check.require(needed, "$.features", "'islands', since there are some", plan.features)
    check.count(plan.islands, MAX_ISLANDS, "$.islands")
    check.unique_names((island.name for island in plan.islands), "$.islands")
    for i, island in enumerate(plan.islands):
        where = f"$.islands[{i}]"
        check_digest(island.sha256, f"{where}.sha256", check)
        check.require(0 < island.length <= section, f"{where}.length", f"1 to {section}", island.length)
        end = section - island.length
        check.require(0 <= island.offset <= end, f"{where}.offset", f"0 to {end}", island.offset)
        check.require(len(island.nodes) > 0, f"{where}.nodes", "at least one", "none")
        for name in ("inputs", "outputs", "nodes"):
            for text in getattr(island, name):
                check.text(text, f"{where}.{name}")


def check_states(plan: Plan, check: Checker) -> None:
    for i, state in enumerate(plan.states):
        _check_state(plan, state, f"$.states[{i}]", check)
        name = STATE_NAMES.get(state.kind, state.name)
        check.require(state.name == name, f"$.states[{i}].name", f"{name!r} for a {state.kind}", state.name)


def _check_state(plan: Plan, state: State, where: str, check: Checker) -> None:
    size = _bytes(state.shape, state.dtype, f"{where}.shape", check)
    check.require(state.bytes == size, f"{where}.bytes", f"{size} for its shape", state.bytes)
    check_placement(state.placement, where, check)
    axes = STATE_AXES.get(state.kind, len(state.shape))
    check.require(len(state.shape) == axes, f"{where}.shape", f"{axes} axes", state.shape)
    if state.kind in ("full_cache", "token_history"):
        rows = state.shape[1] if state.kind == "full_cache" else state.shape[0]
        check.require(rows > plan.model.context, f"{where}.shape", f"over {plan.model.context} rows", rows)
