"""Does every rule of the verifier refuse what breaks it, and only that, with the place?

Each row changes a legal plan in one place, as a tree of maps and lists, and names the complaint that must follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hjgc.plan_format import Plan, PlanError
from hjgc.plan_format.checker import Checker
from hjgc.plan_format.ledger import make_ledger
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.verify import verify
from hjgc.plan_format.verify_kernel import KernelVerifier
from tests.plan_format.device_plan import device_plan, device_sections
from tests.plans import CONSTANTS, small_plan

Change = Callable[[dict[str, Any]], None]
SECTIONS = {"constants": len(CONSTANTS), **{kind: len(data) for kind, data in device_sections().items()}}
D = "0" * 64
TOKENS = {"type": "size", "name": "tokens"}


def binary(operation: str, left: Any, right: Any) -> dict[str, Any]:
    return {"type": "binary", "operation": operation, "left": left, "right": right}


def deep(levels: int) -> Any:
    part: Any = TOKENS
    for _ in range(levels):
        part = binary("max", part, 1)
    return part


def wide(levels: int) -> Any:
    part: Any = TOKENS
    for _ in range(levels):
        part = binary("max", part, part)
    return part


def put(place: str, value: Any) -> Change:
    """Set the value at a dotted place: numbers are entries of lists."""

    def change(tree: dict[str, Any]) -> None:
        *way, last = place.split(".")
        node: Any = tree
        for step in way:
            node = node[int(step)] if isinstance(node, list) else node[step]
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value

    return change


def all_of(*changes: Change) -> Change:
    def change(tree: dict[str, Any]) -> None:
        for one in changes:
            one(tree)

    return change


def twice(place: str) -> Change:
    """Append the first entry of a list to it once more."""

    def change(tree: dict[str, Any]) -> None:
        entries = _at(tree, place)
        entries.append(entries[0])

    return change


def quantised(
    *, features: bool = True, dtype: str = "uint8", size: int = 4, length: int = 200, scales: str = "float32",
    scale_bytes: int = 400, scale_offset: int = 0, zero_bytes: int = 50,
) -> Change:  # fmt: skip
    """The embedding [50, 8] in 4 bits, legal but for what is said."""

    def change(tree: dict[str, Any]) -> None:
        if features:
            tree["features"].append("quantised_sources")
        part = {"file": 0, "offset": scale_offset, "length": scale_bytes, "dtype": scales}
        zeros = {"file": 0, "offset": 0, "length": zero_bytes, "dtype": "uint8"}
        blocks = {"bits": 4, "size": size, "axis": 1, "scales": part, "zeros": zeros}
        tree["weights"][0]["sources"][0] |= {"dtype": dtype, "length": length, "blocks": blocks}

    return change


def ring(*, told: bool = True, window: int = 4) -> Change:
    """The first layer's keys in a ring of as many rows as they have, legal but for what is said."""

    def change(tree: dict[str, Any]) -> None:
        place = next(i for i, state in enumerate(tree["states"]) if state["name"] == "0.key_cache")
        tree["states"][place]["kind"] = "ring_cache"
        for phase in tree["phases"]:
            phase["launches"][2]["attributes"]["ring"] = told
            phase["launches"][3]["attributes"]["window"] = window

    return change


def drop(place: str, index: int) -> Change:
    return lambda tree: _at(tree, place).pop(index)


def turn(place: str) -> Change:
    return lambda tree: _at(tree, place).reverse()


def _at(tree: Any, place: str) -> Any:
    for step in place.split("."):
        tree = tree[int(step)] if isinstance(tree, list) else tree[step]
    return tree


def broken(plan: Plan, change: Change) -> Plan:
    """The plan with the change, and with the ledger that belongs to it unless that is what changes."""
    tree: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(plan))
    ledger = dict(tree["ledger"])
    change(tree)
    made = msgspec.convert(tree, Plan)
    if tree["ledger"] == ledger:
        made = msgspec.structs.replace(
            made,
            ledger=make_ledger(
                made.weights, made.arena_bytes, made.states, made.constants, made.parameters, made.phases
            ),
        )
    return made


# The small plan: phases 0 prefill and 1 decode; launches 0 embed, 1 rotary, 2 and 7 attention_inputs, 3 attention,
# 4 o, 5 gate_up, 6 down, ..., 12 head, 13 caller, 14 sample; schedules 0 default, 1 logits_processor, 2 prompt_only.
SMALL: list[tuple[str, Change, str]] = [
    ("another format", put("format", "9.9"), r"\$\.format: expected 1\.0, found '9\.9'"),
    ("an unknown feature", put("features", ["telepathy"]), r"\$\.features\[0\]: expected one of"),
    ("a feature twice", twice("features"), r"\$\.features\[2\]"),
    ("many features", put("features", ["token_history"] * 65), r"\$\.features: expected at most 64"),
    ("a producer that clears the screen", put("producer.hjgc", "\x1b[2J"), r"\$\.producer\.hjgc: expected printable"),
    ("a producer's essay", put("producer.onnx_producer", "x" * 5000), r"\$\.producer\.onnx_producer"),
    ("no digest of the model", put("producer.onnx_sha256", "x"), r"\$\.producer\.onnx_sha256: expected 64 hex"),
    ("a negative opset", put("producer.opset", -1), r"\$\.producer\.opset"),
    ("many options", put("producer.options", {str(i): "" for i in range(65)}), r"\$\.producer\.options: expected at"),
    ("an option's name with an escape", put("producer.options", {"\x1b": ""}), r"\$\.producer\.options: expected pri"),
    ("an option with an escape", put("producer.options", {"a": "\x1b"}), r"\$\.producer\.options\.a: expected pri"),
    ("a model's name with an escape", put("model.name", "\x07"), r"\$\.model\.name"),
    ("an architecture with an escape", put("model.architecture", "\x07"), r"\$\.model\.architecture"),
    ("a negative context", put("model.context", -1), r"\$\.model\.context"),
    ("a huge vocabulary", put("model.vocab_size", 1 << 31), r"\$\.model\.vocab_size"),
    ("negative layers", put("model.layers", -1), r"\$\.model\.layers"),
    ("a negative end", put("model.eos_ids", [1, -1]), r"\$\.model\.eos_ids\[1\]"),
    ("a negative beginning", put("model.bos_id", -5), r"\$\.model\.bos_id"),
    ("a setting that is no number", put("model.generation", {"top_p": math.nan}), r"\$\.model\.generation\.top_p"),
    ("many settings", put("model.generation", {str(i): 1.0 for i in range(65)}), r"\$\.model\.generation: expected at"),
    ("a tokenizer elsewhere", put("model.tokenizer", {"name": "../t", "sha256": D}), r"\$\.model\.tokenizer\.name"),
    ("a tokenizer of no digest", put("model.tokenizer", {"name": "t", "sha256": "0"}), r"tokenizer\.sha256"),
    ("no target", put("targets", []), r"\$\.targets: expected 1 to 64"),
    ("an unknown target", put("targets", ["tpu"]), r"\$\.targets\[0\]: expected 'cpu', 'sm_NN' or"),
    ("a target twice", twice("targets"), r"\$\.targets\[1\]"),
    ("whole numbers to compute with", put("dtypes.compute", "int32"), r"\$\.dtypes\.compute"),
    ("a larger parameter block", put("parameters.bytes", 128), r"\$\.parameters"),
    ("a field elsewhere", put("parameters.fields.0.offset", 60), r"\$\.parameters"),
    ("a file of no bytes", put("files.0.bytes", 0), r"\$\.files\[0\]\.bytes"),
    ("a file of petabytes", put("files.0.bytes", 1 << 50), r"\$\.files\[0\]\.bytes"),
    ("no digest of the head", put("files.0.head_sha256", "AA" * 32), r"\$\.files\[0\]\.head_sha256"),
    ("no digest of the samples", put("files.0.sample_sha256", ""), r"\$\.files\[0\]\.sample_sha256"),
    ("no digest of the file", put("files.0.sha256", "0" * 63), r"\$\.files\[0\]\.sha256"),
    ("a file twice", twice("files"), r"\$\.files\[1\]\.name: expected a name not used before"),
    ("a weight's name twice", put("weights.1.name", "embed"), r"\$\.weights\[1\]\.name"),
    ("a state with a weight's name", put("states.0.name", "embed"), r"\$\.states\[0\]\.name: expected a name not used"),
    ("a constant without a name", put("constants.0.name", ""), r"\$\.constants\[0\]\.name: expected a short"),
    ("a weight with an axis of nothing", put("weights.0.shape", [0, 8]), r"\$\.weights\[0\]\.shape"),
    ("a weight of many axes", put("weights.0.shape", [1] * 9), r"\$\.weights\[0\]\.shape"),
    ("a weight of three axes", put("weights.0.shape", [50, 8, 1]), r"\$\.weights\[0\]\.shape: expected one or two"),
    ("a weight of exabytes", put("weights.0.shape", [1 << 31, 1 << 31]), r"\$\.weights\[0\]\.shape: expected at most"),
    ("a weight of other bytes", put("weights.0.bytes", 4), r"\$\.weights\[0\]\.bytes"),
    ("a weight elsewhere", put("weights.0.placement", "pinned_host"), r"\$\.weights\[0\]\.placement"),
    ("a weight from nowhere", put("weights.0.sources", []), r"\$\.weights\[0\]\.sources: expected at least one"),
    ("a source of no file", put("weights.0.sources.0.file", 1), r"\$\.weights\[0\]\.sources\[0\]\.file"),
    ("a source from the end of the tables", put("weights.0.sources.0.file", -1), r"sources\[0\]\.file"),
    ("a source of another length", put("weights.0.sources.0.length", 4), r"sources\[0\]\.length"),
    ("a source past the end", put("weights.0.sources.0.offset", 7000), r"sources\[0\]\.offset: expected 0 to 5600"),
    ("a source before the start", put("weights.0.sources.0.offset", -4), r"sources\[0\]\.offset"),
    ("a source of no axes", put("weights.0.sources.0.shape", []), r"sources\[0\]\.shape: expected one or two"),
    ("a slice past the rows", put("weights.0.sources.0.slice_stop", 51), r"sources\[0\]\.slice_start"),
    ("a slice of nothing", put("weights.0.sources.0.slice_start", 50), r"sources\[0\]\.slice_start"),
    ("rows missing", put("weights.0.sources.0.slice_stop", 49), r"\$\.weights\[0\]\.sources: expected 50 rows"),
    ("blocks without the feature", quantised(features=False), r"sources\[0\]\.blocks: expected the feature"),
    ("blocks of wide numbers", quantised(dtype="float32"), r"sources\[0\]\.dtype: expected uint8"),
    ("blocks of nothing", quantised(size=0), r"blocks\.size: expected 1 to 65536"),
    ("blocks of half bytes", quantised(size=3), r"blocks\.size: expected rows of whole bytes"),
    ("packed numbers of another length", quantised(length=400), r"sources\[0\]\.length: expected 200"),
    ("scales of whole numbers", quantised(scales="int32"), r"blocks\.scales\.dtype: expected a floating"),
    ("too few scales", quantised(scale_bytes=396), r"blocks\.scales\.length: expected 400"),
    ("scales past the end", quantised(scale_offset=7000), r"blocks\.scales\.offset: expected 0 to"),
    ("zero points of another length", quantised(zero_bytes=49), r"blocks\.zeros\.length: expected 50"),
    ("a ring that nobody is told of", ring(told=False), r"launches\[2\]\.attributes: expected for '0.key_cache' ring"),
    ("a ring without a window", ring(window=0), r"launches\[3\]\.attributes: expected for '0.key_cache' ring"),
    ("a ring shorter than its window and a call", ring(window=40), r"launches\[3\]\.attributes"),
    ("columns for rows", put("weights.0.sources.0.transpose", True), r"sources\[0\]: expected rows of \(8,\)"),
    ("a norm on its side", put("weights.1.sources.0.transpose", True), r"sources\[0\]\.transpose"),
    ("weights past the files", put("files.0.bytes", 7200 // 8 - 1), r"sources\[0\]\.offset"),
    ("a constant of other bytes", put("constants.0.length", 4), r"\$\.constants\[0\]\.length"),
    ("a constant past the section", put("constants.0.offset", 4), r"\$\.constants\[0\]\.offset: expected 0 to 0"),
    ("a constant before it", put("constants.0.offset", -8), r"\$\.constants\[0\]\.offset"),
    ("a state of other bytes", put("states.0.bytes", 1), r"\$\.states\[0\]\.bytes"),
    ("a state elsewhere", put("states.0.placement", "cpu"), r"\$\.states\[0\]\.placement"),
    ("a flat cache", all_of(put("states.0.shape", [196]), put("states.0.bytes", 784)), r"\$\.states\[0\]\.shape: ex"),
    ("a short cache", all_of(put("states.0.shape", [1, 48, 4]), put("states.0.bytes", 768)), r"over 48 rows"),
    ("a history by another name", put("states.4.name", "past"), r"\$\.states\[4\]\.name: expected 'history'"),
    ("an arena of petabytes", put("arena_bytes", 1 << 50), r"\$\.arena_bytes"),
    ("a negative arena", put("arena_bytes", -1), r"\$\.arena_bytes"),
    ("no phase", put("phases", []), r"\$\.phases: expected 1 to 16"),
    ("a phase twice", twice("phases"), r"\$\.phases\[2\]\.name"),
    ("a phase without launches", put("phases.0.launches", []), r"\$\.phases\[0\]\.launches: expected 1 to"),
    ("numerics with an escape", put("phases.0.numerics", "\x1b"), r"\$\.phases\[0\]\.numerics"),
    ("an unknown size", put("phases.0.sizes.1.name", "width"), r"phases\[0\]\.sizes\[1\]\.name"),
    ("a size twice", twice("phases.0.sizes"), r"phases\[0\]\.sizes\[3\]\.name"),
    ("rows that only the device knows", put("phases.0.sizes.0.lives", "device"), r"sizes\[0\]\.lives: expected 'key'"),
    ("a key that the device changes", put("phases.0.sizes.1.lives", "key"), r"sizes\[1\]\.lives: expected 'device'"),
    ("no rows", put("phases.0.sizes.0.low", 0), r"sizes\[0\]\.low"),
    ("a range upside down", put("phases.0.sizes.0.low", 17), r"sizes\[0\]\.low"),
    ("more rows than the context", put("phases.0.sizes.0.high", 49), r"sizes\[0\]\.high: expected up to 48"),
    ("a start past the context", put("phases.0.sizes.1.high", 49), r"sizes\[1\]\.high"),
    ("a length over the rows", put("phases.1.sizes.1.high", 2), r"phases\[1\]\.sizes: expected a length of up to 1"),
    ("a buffer's name twice", put("phases.0.buffers.1.name", "x"), r"phases\[0\]\.buffers\[1\]\.name"),
    ("a buffer of many axes", put("phases.0.buffers.0.shape", [1] * 9), r"buffers\[0\]\.shape"),
    ("a deep expression", put("phases.0.buffers.0.shape.0", deep(16)), r"buffers\[0\]\.shape: expected up to 64 parts"),
    ("an expression of many parts", put("phases.0.buffers.0.shape.0", wide(6)), r"shape: expected up to 64 parts"),
    ("a shape by position", put("phases.0.buffers.0.shape.0.name", "start"), r"shape: expected sizes among \['tokens'"),
    ("division by nothing", put("phases.0.buffers.0.shape.0", binary("ceil_div", 1, 0)), r"shape: expected a divisor"),
    (
        "division by what may be nothing",
        put("phases.0.buffers.0.shape.0", binary("ceil_div", 1, binary("sub", TOKENS, 2))),
        r"shape: expected a divisor over 0, but \(tokens - 2\) may be -1",
    ),
    (
        "a product past 64 bits",
        put(
            "phases.0.buffers.0.shape.0", binary("sub", binary("mul", TOKENS, 1 << 62), binary("mul", TOKENS, 1 << 62))
        ),
        r"shape: expected no part past",
    ),
    ("a number past 64 bits", put("phases.0.buffers.0.shape.0", (1 << 64) - 1), r"shape: expected no part past"),
    ("an axis of nothing", put("phases.0.buffers.0.shape.0", binary("sub", TOKENS, 1)), r"shape: expected axes of 1"),
    ("a buffer too small", put("phases.0.buffers.0.bytes", 8), r"buffers\[0\]\.bytes: expected 512 to"),
    ("a buffer over the arena", put("phases.0.buffers.0.bytes", 1 << 30), r"buffers\[0\]\.bytes"),
    ("an odd place", put("phases.0.buffers.0.offset", 4), r"buffers\[0\]\.offset: expected a multiple of 256"),
    ("a place before the arena", put("phases.0.buffers.0.offset", -256), r"buffers\[0\]\.offset"),
    ("a place past the arena", put("phases.0.buffers.0.offset", 1 << 20), r"buffers\[0\]\.offset"),
    ("a life past the end", put("phases.0.buffers.0.last", 15), r"buffers\[0\]\.first: expected launches of 0 to 14"),
    ("a life upside down", put("phases.0.buffers.0.first", 9), r"buffers\[0\]\.first"),
    ("two buffers in one place", put("phases.0.buffers.1.offset", 256), r"buffers\[1\]: expected no byte shared with"),
    ("inputs of a phase of tokens", put("phases.0.inputs", [0]), r"phases\[0\]\.inputs: expected what entry 'token'"),
    ("a launch's name twice", put("phases.0.launches.1.name", "embed"), r"launches\[1\]\.name"),
    ("an unknown op", put("phases.0.launches.0.op", "dance"), r"launches\[0\]\.op: expected an op that hjgc knows"),
    ("an unknown role", put("phases.0.launches.0.operands.0.role", "guest"), r"launches\[0\]\.operands\[0\]\.role"),
    ("a role twice", twice("phases.0.launches.0.operands"), r"launches\[0\]\.operands\[4\]\.role"),
    (
        "a role missing",
        drop("phases.0.launches.0.operands", 1),
        r"launches\[0\]\.operands: expected an operand for 'ta",
    ),
    ("a table written", put("phases.0.launches.0.operands.1.access", "write"), r"operands\[1\]\.access: expected read"),
    ("parameters in the arena", put("phases.0.launches.0.operands.2.space", "buffer"), r"operands\[2\]\.space"),
    ("a second block", put("phases.0.launches.0.operands.2.index", 1), r"operands\[2\]\.index: expected 0"),
    ("a table that changes", put("phases.0.launches.0.operands.1.space", "state"), r"expected a weight or constant"),
    (
        "a result that cannot",
        put("phases.0.launches.0.operands.3.space", "weight"),
        r"operands\[3\]\.space: expected o",
    ),
    (
        "an operand past its table",
        put("phases.0.launches.0.operands.1.index", 15),
        r"operands\[1\]\.index: expected an",
    ),
    ("an operand counted from the end", put("phases.0.launches.0.operands.1.index", -1), r"operands\[1\]\.index"),
    (
        "a buffer before its life",
        put("phases.0.launches.0.operands.3.index", 4),
        r"expected a buffer alive at launch 0",
    ),
    (
        "a cache that is none",
        put("phases.0.launches.3.operands.1.index", 4),
        r"launches\[3\]\.operands\[1\]\.index: expected a state of kind full_cache or ring_cache, found 'history'",
    ),
    (
        "a history that is none",
        put("phases.0.launches.0.operands.0.index", 5),
        r"launches\[0\]\.operands\[0\]\.index: expected a state of kind token_history, found 'sampled'",
    ),
    ("another element type", put("dtypes.cache", "float16"), r"operands\[\d+\]: expected float16 for key_cache"),
    (
        "one cache for both",
        put("phases.0.launches.2.operands.8.index", 0),
        r"operands\[8\]: expected memory of its own",
    ),
    (
        "a result over its input",
        put("phases.0.launches.4.operands.3.index", 0),
        r"operands\[3\]: expected memory of its",
    ),
    (
        "operands that disagree",
        put("phases.0.launches.4.operands.1.index", 6),
        r"operands: weight: expected axis K = 8",
    ),
    ("another vocabulary", put("model.vocab_size", 51), r"launches\[0\]\.operands: expected axis V = 51"),
    ("another number of rows", put("phases.1.buffers.0.shape.0", 2), r"buffers\[0\]\.bytes"),
    (
        "an attribute missing",
        put("phases.0.launches.3.attributes", {}),
        r"launches\[3\]\.attributes: expected \['scale'",
    ),
    ("an attribute more", put("phases.0.launches.4.attributes", {"scale": 1.0}), r"launches\[4\]\.attributes"),
    (
        "an attribute that is whole",
        put("phases.0.launches.3.attributes.scale", 1),
        r"attributes\.scale: expected a flo",
    ),
    ("an attribute without end", put("phases.0.launches.3.attributes.scale", math.inf), r"attributes\.scale"),
    ("an attribute that is no number", put("phases.0.launches.3.attributes.scale", math.nan), r"attributes\.scale"),
    ("an attribute past float32", put("phases.0.launches.3.attributes.scale", 1e39), r"attributes\.scale"),
    (
        "no kernel for a target",
        put("phases.0.launches.0.kernels", {}),
        r"launches\[0\]\.kernels: expected one for each",
    ),
    (
        "a host's op on the device",
        put("phases.0.launches.13.kernels.cpu", {"type": "reference"}),
        r"launches\[13\]\.kernels\.cpu: expected a host call",
    ),
    (
        "a device's op on the host",
        put("phases.0.launches.0.kernels.cpu", {"type": "host", "callback": "logits_processor"}),
        r"launches\[0\]\.kernels\.cpu: expected a host call for an op of the host's",
    ),
    (
        "an unknown callback",
        put("phases.0.launches.13.kernels.cpu.callback", "os.system"),
        r"launches\[13\]\.kernels\.cpu\.callback: expected 'logits_processor', found 'os\.system'",
    ),
    (
        "a library",
        put(
            "phases.0.launches.0.kernels.cpu",
            {"type": "library", "library": "x.so", "routine": "f", "algorithm": 0, "workspace_bytes": 0},
        ),
        r"launches\[0\]\.kernels\.cpu: expected a library this hjgc knows, found 'x\.so'",
    ),
    ("a launch elsewhere", put("phases.0.launches.0.placement", "cpu"), r"launches\[0\]\.placement"),
    ("another card", put("phases.0.launches.0.device", 1), r"launches\[0\]\.device"),
    ("another rank", put("phases.0.launches.0.rank", 1), r"launches\[0\]\.rank"),
    ("an edge to nowhere", put("phases.0.edges.0", [0, 15]), r"edges\[0\]: expected before < after < 15"),
    ("an edge backwards", put("phases.0.edges.0", [1, 0]), r"edges\[0\]"),
    ("an edge from before the start", put("phases.0.edges.0", [-1, 0]), r"edges\[0\]"),
    ("an edge twice", twice("phases.0.edges"), r"edges\[\d+\]: expected each edge once"),
    ("many edges", lambda tree: tree["phases"][0]["edges"].extend([[0, 1]] * 1000), r"edges: expected at most 960"),
    ("pdl between references", put("phases.0.edges.0", [0, 1, "pdl"]), r"edges\[0\]\.kind: expected pdl between"),
    ("no schedule", put("phases.1.schedules", []), r"phases\[1\]\.schedules: expected one called default"),
    ("a schedule twice", twice("phases.1.schedules"), r"schedules\[2\]\.name"),
    ("an unknown schedule", put("phases.1.schedules.1.name", "rest"), r"schedules\[1\]\.name: expected one of"),
    ("a schedule of nothing", put("phases.1.schedules.1.segments", []), r"schedules\[1\]\.segments: expected at least"),
    (
        "a segment of nothing",
        put("phases.1.schedules.0.segments.0.launches", []),
        r"segments\[0\]\.launches: expected at",
    ),
    (
        "a segment of no launch",
        put("phases.1.schedules.0.segments.0.launches", [15]),
        r"segments\[0\]\.launches: expecte",
    ),
    ("launches backwards", turn("phases.1.schedules.0.segments.0.launches"), r"segments: expected launches in rising"),
    (
        "a host call in a graph",
        put("phases.1.schedules.0.segments.0.launches", [13]),
        r"launches: expected no host call",
    ),
    ("a graph for no key", put("phases.0.schedules.0.segments.0.key.sizes", []), r"key\.sizes: expected \('tokens',\)"),
    ("no buckets", put("phases.0.schedules.0.segments.0.key.buckets", []), r"key\.buckets: expected rising to 16"),
    ("a half-empty graph", put("phases.0.schedules.0.segments.0.key.buckets", [2, 7, 16]), r"key\.buckets"),
    ("buckets that fall", put("phases.0.schedules.0.segments.0.key.buckets", [2, 4, 4, 8, 16]), r"key\.buckets"),
    (
        "a bucket under the range",
        all_of(put("phases.0.sizes.0.low", 3), put("phases.0.schedules.0.segments.0.key.buckets", [2, 4, 8, 16])),
        r"key\.buckets: expected rising to 16",
    ),
    ("buckets that end early", put("phases.0.schedules.0.segments.0.key.buckets", [2, 4, 8]), r"key\.buckets"),
    ("many buckets", put("phases.0.schedules.0.segments.0.key.buckets", [1] * 4097), r"key\.buckets: expected at most"),
    (
        "dynamic for no reason",
        put("phases.1.schedules.1.segments.1.reasons", []),
        r"segments\[1\]\.reasons: expected at",
    ),
    ("the reason of another", put("phases.1.schedules.1.segments.1.reasons.0.launch", 0), r"reasons\[0\]\.launch"),
    ("a reason without a chain", put("phases.1.schedules.1.segments.1.reasons.0.chain", []), r"reasons\[0\]\.chain"),
    (
        "a reason's long chain",
        put("phases.1.schedules.1.segments.1.reasons.0.chain", ["x"] * 65),
        r"reasons\[0\]\.chain",
    ),
    (
        "a reason with an escape",
        put("phases.1.schedules.1.segments.1.reasons.0.chain", ["\x1b"]),
        r"reasons\[0\]\.chain",
    ),
    ("edges removed", put("phases.1.edges", []), r"schedules\[0\]\.segments: expected launch 0 ordered before 2"),
    ("an edge removed", drop("phases.1.edges", 3), r"schedules\[0\]\.segments: expected launch 3 ordered before 4"),
    (
        "a read of what nobody wrote",
        put("phases.1.schedules.0.segments.0.launches", [1, 2, 3]),
        r"schedules\[0\]\.segments: expected .*ordered before|schedules\[0\]\.segments: expected 'x' written before",
    ),
    (
        "no logits",
        put("phases.1.schedules.0.segments.0.launches", [2]),
        r"expected 'x' written before launch 2 reads it",
    ),
    ("a ledger that lies", put("ledger.weights", 1), r"\$\.ledger\.weights: expected 7200, found 1"),
    ("a ledger without graphs", put("ledger.graph", {}), r"\$\.ledger\.graph"),
]

# The device plan: one phase of five norms, x0 to x5, for sm_90 and sm_100.
CALL = "phases.0.launches.0.kernels.sm_90"
MAP = {
    "type": "tensor_map",
    "index": 0,
    "sizes": [128, 32],
    "strides": [256],
    "box": [64, 64],
    "swizzle": 128,
}


def ranges(*highs: int) -> Change:
    """The first launch's call, once for each range of rows."""

    def change(tree: dict[str, Any]) -> None:
        kernels = _at(tree, CALL.rpartition(".")[0])
        entries = [{"high": high, "call": kernels["sm_90"]} for high in highs]
        kernels["sm_90"] = {"type": "rows", "ranges": entries}

    return change


def tensor_map(**fields: Any) -> Change:
    """Its first argument as a tensor map."""
    return all_of(put("variants.0.parameters.0", "tensor_map"), put(f"{CALL}.arguments.0", MAP | fields))


DEVICE: list[tuple[str, Change, str]] = [
    ("a template twice", twice("templates"), r"\$\.templates\[1\]\.name"),
    ("a template of no digest", put("templates.0.digest", "0"), r"\$\.templates\[0\]\.digest"),
    ("an axis twice", put("templates.0.axes", ["pdl", "pdl"]), r"\$\.templates\[0\]\.axes\[1\]\.name"),
    ("many axes", put("templates.0.axes", [str(i) for i in range(65)]), r"\$\.templates\[0\]\.axes: expected at most"),
    ("a variant of no template", put("variants.0.template", 1), r"\$\.variants\[0\]\.template"),
    ("a variant for another chip", put("variants.0.target", "sm_80"), r"\$\.variants\[0\]\.target"),
    ("a variant without its axes", put("variants.0.axes", {}), r"\$\.variants\[0\]\.axes"),
    ("an axis with an escape", put("variants.0.axes.warps", "\x1b"), r"\$\.variants\[0\]\.axes\.warps"),
    ("no symbol", put("variants.0.built.entry", "a b"), r"\$\.variants\[0\]\.built\.entry"),
    ("33 threads", put("variants.0.built.threads", 33), r"\$\.variants\[0\]\.built\.threads"),
    ("much shared memory", put("variants.0.built.shared_bytes", 1 << 21), r"\$\.variants\[0\]\.built\.shared_bytes"),
    ("many registers", put("variants.0.built.registers", 256), r"\$\.variants\[0\]\.built\.registers"),
    ("many parameters", put("variants.0.parameters", ["scratch"] * 129), r"\$\.variants\[0\]\.parameters"),
    (
        "code past the section",
        put("variants.0.built.code.offset", 1001),
        r"\$\.variants\[0\]\.built\.code: expected a range",
    ),
    (
        "text past its section",
        put("templates.0.files.1.length", 99),
        r"templates\[0\]\.files\[1\]: expected a range ins",
    ),
    ("no text", put("templates.0.files.0.length", 0), r"templates\[0\]\.files\[0\]: expected a range inside"),
    ("a file twice", put("templates.0.files.0.name", "rms_norm.py"), r"templates\[0\]\.files"),
    ("a file in a folder", put("templates.0.files.0.name", "../rms_norm.py"), r"files\[0\]: expected a name without"),
    (
        "text over and over",
        all_of(put("templates.0.files.0.length", 25), put("templates.0.files.0.offset", 0)),
        r"templates\[0\]\.files: expected at most the \d+ bytes",
    ),
    (
        "a variant for what its template is not",
        put("templates.0.only", "sm_100"),
        r"variants\[0\]\.target: expected sm_100",
    ),
    ("text of no digest", put("templates.0.files.0.sha256", "0"), r"templates\[0\]\.files\[0\]\.sha256"),
    ("a target with an escape", put("templates.0.only", "\x1b"), r"templates\[0\]\.only"),
    ("code before it", put("variants.0.built.code.offset", -1), r"\$\.variants\[0\]\.built\.code"),
    ("no code", put("variants.0.built.code.length", 0), r"\$\.variants\[0\]\.built\.code"),
    (
        "code of another section",
        put("variants.0.built.code.section", "ptx"),
        r"\$\.variants\[0\]\.built\.code\.section: expected .*cubin",
    ),
    ("no range of rows", ranges(), r"kernels\.sm_90\.ranges: expected rising to 32"),
    ("ranges that fall", ranges(16, 8, 32), r"kernels\.sm_90\.ranges: expected rising to 32"),
    ("ranges that end early", ranges(8, 16), r"kernels\.sm_90\.ranges: expected rising to 32"),
    ("a range past the rows", ranges(16, 33), r"kernels\.sm_90\.ranges: expected rising to 32"),
    (
        "a range that ends inside a bucket",
        ranges(17, 32),
        r"key\.buckets: expected each range of rows to end with a bu",
    ),
    ("a map of what is written", tensor_map(index=2), r"arguments\[0\]\.index: expected an operand that is read"),
    ("a map of no operand", tensor_map(index=3), r"arguments\[0\]\.index"),
    ("a map past its operand", tensor_map(sizes=[128, 33]), r"arguments\[0\]\.sizes: expected 8192 bytes at most"),
    ("a map of six axes", tensor_map(sizes=[2] * 6), r"arguments\[0\]\.sizes: expected 1 to 5 axes"),
    ("a map without a stride", tensor_map(strides=[]), r"arguments\[0\]\.sizes: expected 1 to 5 axes, in strides"),
    ("a map of odd strides", tensor_map(strides=[8]), r"arguments\[0\]\.strides: expected multiples of 16"),
    ("a map with a huge box", tensor_map(box=[64, 257]), r"arguments\[0\]\.box"),
    ("a map with a box wider than its swizzle", tensor_map(box=[128, 8]), r"arguments\[0\]\.box"),
    ("a map for a pointer", put(f"{CALL}.arguments.0", MAP), r"arguments\[0\]: expected pointer, found 'a tensor map'"),
    ("code of no digest", put("variants.0.built.code.sha256", "0"), r"\$\.variants\[0\]\.built\.code\.sha256"),
    (
        "pdl before there was any",
        all_of(put("targets.0", "sm_80"), put("variants.0.target", "sm_80")),
        r"\$\.variants\[0\]\.pdl: expected false before sm_90",
    ),
    ("a call of no variant", put(f"{CALL}.variant", 2), r"kernels\.sm_90\.variant: expected an index below 2"),
    ("a call of another chip's", put(f"{CALL}.variant", 1), r"kernels\.sm_90\.variant: expected one built for sm_90"),
    ("a reference on a GPU", put(CALL, {"type": "reference"}), r"kernels\.sm_90: expected the reference on the cpu"),
    ("an empty grid", put(f"{CALL}.grid.1", 0), r"grid\[1\]: expected 1 to 65535"),
    ("a huge grid", put(f"{CALL}.grid.2", 65536), r"grid\[2\]"),
    ("a grid by length", put(f"{CALL}.grid.0.name", "length"), r"grid\[0\]: expected sizes among \['tokens'\]"),
    ("an argument missing", drop(f"{CALL}.arguments", 5), r"arguments: expected 6, found 5"),
    ("an argument of no operand", put(f"{CALL}.arguments.0.index", 3), r"arguments\[0\]\.index"),
    ("a pointer for a number", put(f"{CALL}.arguments.4", {"type": "operand", "index": 0}), r"arguments\[4\]"),
    ("an unknown field", put(f"{CALL}.arguments.3.name", "width"), r"arguments\[3\]: expected a pointer, or one of"),
    ("an unknown attribute", put(f"{CALL}.arguments.4.name", "width"), r"arguments\[4\]: expected an attribute of"),
    (
        "a value for a float",
        put(f"{CALL}.arguments.4", {"type": "value", "value": 1}),
        r"arguments\[4\]: expected a va",
    ),
    (
        "an attribute for a pointer",
        put(f"{CALL}.arguments.0", {"type": "attribute", "name": "epsilon"}),
        r"arguments\[0\]",
    ),
    (
        "a value past 32 bits",
        all_of(put("variants.0.parameters.5", "int32"), put(f"{CALL}.arguments.5.value.right", 1 << 27)),
        r"arguments\[5\]: expected a value that fits int32",
    ),
    ("an input that nobody holds", put("phases.0.inputs", [9]), r"phases\[0\]\.inputs\[0\]"),
    ("an input twice", put("phases.0.inputs", [0, 0]), r"phases\[0\]\.inputs: expected each buffer once"),
    ("an input of later", put("phases.0.inputs", [2]), r"phases\[0\]\.inputs\[0\]: expected alive at launch 0"),
    ("no input", put("phases.0.inputs", []), r"phases\[0\]\.inputs: expected what entry 'tensor' needs"),
    ("an output of before", put("phases.0.outputs", [1]), r"phases\[0\]\.outputs\[0\]: expected alive at launch 4"),
    ("logits without a state", put("phases.0.logits_rows", "last"), r"phases\[0\]\.entry: expected a state of kind lo"),
    (
        "columns by the row",
        put("phases.0.buffers.0.shape.1", binary("mul", TOKENS, 4)),
        r"launches\[0\]\.operands: weight: expected axis H = \(tokens \* 4\), found 128",
    ),
    (
        "rows of another size",
        all_of(*(put(f"phases.0.buffers.{i}.shape.0", binary("max", TOKENS, 1)) for i in range(6))),
        r"launches\[0\]\.operands: expected axis M = tokens, found max\(tokens, 1\)",
    ),
    (
        "more weights than files hold",
        lambda tree: tree["weights"].extend({**tree["weights"][0], "name": f"w{i}"} for i in range(50)),
        r"\$\.weights: expected at most 8 times the bytes of the files",
    ),
    ("a vast total", lambda tree: tree["states"].extend(vast(i) for i in range(17)), r"\$\.ledger\.total: expected at"),
    ("two histories", lambda tree: tree["states"].extend([history(), history()]), r"\$\.states\[1\]\.name"),
]


def vast(number: int) -> dict[str, Any]:
    size = 1 << 40
    return {"name": f"s{number}", "kind": "recurrent", "dtype": "uint8", "shape": [1 << 20, 1 << 20], "bytes": size}


def history() -> dict[str, Any]:
    return {"name": "history", "kind": "token_history", "dtype": "int32", "shape": [40], "bytes": 160}


def check_complaint(plan: Plan, change: Change, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        verify(broken(plan, change), SECTIONS, Path("p.hjg"))


WITH_BUCKETS = ((0, 0), (1, 0), (1, 2), (2, 0))
"""Schedule and static segment of the small plan's prefill."""


def nothing(tree: dict[str, Any]) -> None:
    """Change nothing."""


def test_the_plans_that_are_broken_below_are_legal() -> None:
    for plan in (small_plan(), device_plan()):
        verify(broken(plan, nothing), SECTIONS, Path("p.hjg"))


def test_a_launch_may_make_another_call_for_each_range_of_rows() -> None:
    verify(broken(device_plan(), ranges(16, 32)), SECTIONS, Path("p.hjg"))


@pytest.mark.parametrize("swizzle", [0, 128])
def test_a_launch_may_take_a_tensor_map(swizzle: int) -> None:
    every = [put(f"phases.0.launches.{i}.kernels.sm_90.arguments.0", MAP | {"swizzle": swizzle}) for i in range(5)]
    verify(broken(device_plan(), all_of(tensor_map(), *every)), SECTIONS, Path("p.hjg"))


def test_the_same_kernel_is_judged_again_for_a_launch_that_differs() -> None:
    plan = broken(device_plan(), all_of(tensor_map(), put("phases.0.launches.1.kernels.sm_90.arguments.0", MAP)))
    first, second = (
        msgspec.structs.replace(launch, attributes={"epsilon": 1.0}) for launch in plan.phases[0].launches[:2]
    )
    assert first.kernels["sm_90"] == second.kernels["sm_90"]
    one, two, *more = plan.phases[0].buffers
    tables = {"buffer": (one, msgspec.structs.replace(two, bytes=4096), *more), "weight": plan.weights}
    verifier = KernelVerifier(plan, tables, {"tokens": (1, 32)}, Checker(Path("p.hjg")))
    verifier.run(all_ops()["rms_norm"], first, "one")
    with pytest.raises(PlanError, match=r"two\.sm_90\.arguments\[0\]\.sizes: expected 4096 bytes at most, found 8192"):
        verifier.run(all_ops()["rms_norm"], second, "two")
    with pytest.raises(PlanError, match=r"three\.sm_90\.arguments\[4\]: expected an attribute of type float32"):
        verifier.run(all_ops()["rms_norm"], msgspec.structs.replace(first, attributes={"epsilon": 1}), "three")


def test_buckets_may_begin_later_than_the_range_does() -> None:
    change = [put(f"phases.0.schedules.{i}.segments.{j}.key.buckets", [12, 16]) for i, j in WITH_BUCKETS]
    verify(broken(small_plan(), all_of(*change)), SECTIONS, Path("p.hjg"))


# The same plan with a call of `steer` as launch 7.
FUNCTION: list[tuple[str, Change, str]] = [
    (
        f"a function called {name[:9]!r}",
        put("phases.0.launches.7.kernels.cpu.callback", name),
        r"launches\[7\]\.kernels\.cpu\.callback: expected the name of a function: up to 64 letters, digits and _",
    )
    for name in ("", "os.system", "7up", "ste er", "\x1b[2J", "steer\n", "é", "x" * 65, "logits_processor")
] + [
    (
        "a captured call of the host's",
        put("phases.1.schedules.0.segments.0.launches", [*range(8)]),
        r"segments\[0\]\.launches: expected no host call, found 'host'",
    ),
    (
        "a function on the device",
        put("phases.0.launches.7.kernels.cpu", {"type": "reference"}),
        r"launches\[7\]\.kernels\.cpu: expected a host call",
    ),
]


@pytest.mark.parametrize(("change", "words"), [pytest.param(*row[1:], id=row[0]) for row in FUNCTION])
def test_a_plan_that_calls_a_function_is_refused_for(change: Change, words: str) -> None:
    check_complaint(small_plan(function="steer"), change, words)


@pytest.mark.parametrize(("change", "words"), [pytest.param(*row[1:], id=row[0]) for row in SMALL])
def test_a_plan_for_the_cpu_is_refused_for(change: Change, words: str) -> None:
    check_complaint(small_plan(), change, words)


@pytest.mark.parametrize(("change", "words"), [pytest.param(*row[1:], id=row[0]) for row in DEVICE])
def test_a_plan_for_a_device_is_refused_for(change: Change, words: str) -> None:
    check_complaint(device_plan(), change, words)
