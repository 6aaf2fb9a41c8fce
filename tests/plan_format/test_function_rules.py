"""Does every rule of the verifier that speaks of functions and islands refuse what breaks it, with the place?

Rows are as in test_rules.py; what buffers and launches there are, function_plan.py says.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hjgc.plan_format import PlanError, verify_launch
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.verify import verify
from tests.plan_format.function_plan import function_plan
from tests.plan_format.test_rules import Change, all_of, binary, broken, drop, nothing, put, turn, twice
from tests.plans import CONSTANTS, small_plan

N = {"type": "size", "name": "N"}
VALUE = {"space": "value", "index": 0}
SEGMENTS = "phases.0.schedules.0.segments"


def merged(place: str, fields: dict[str, Any]) -> Change:
    return all_of(*(put(f"{place}.{name}", value) for name, value in fields.items()))


def sizes(count: int) -> Change:
    return put("phases.0.sizes", [{"name": f"n{i}", "low": 0, "high": 8, "lives": "key"} for i in range(count)])


def islands(count: int) -> Change:
    return lambda tree: put("islands", [tree["islands"][0]] * count)(tree)


def operand(launch: int, place: int, /, **fields: Any) -> Change:
    return merged(f"phases.0.launches.{launch}.operands.{place}", fields)


HEADER: list[tuple[str, Change, str]] = [
    ("a function without the feature", put("features", ["islands"]), r"\$\.features: expected 'functions', since a ph"),
    ("islands without the feature", put("features", ["functions"]), r"\$\.features: expected 'islands', since there"),
    ("a size that is no name", put("phases.0.sizes.0.name", "4N"), r"sizes\[0\]\.name: expected a name of letters"),
    ("a size with a space", put("phases.0.sizes.0.name", "N M"), r"sizes\[0\]\.name: expected a name of letters"),
    ("a size twice", twice("phases.0.sizes"), r"sizes\[2\]\.name: expected a name not used before, found 'N'"),
    ("a size on the device", put("phases.0.sizes.0.lives", "device"), r"sizes\[0\]\.lives: expected 'key' for a func"),
    ("a size under 0", put("phases.0.sizes.0.low", -1), r"sizes\[0\]\.low: expected 0 to high, and that up to"),
    ("a size of no range", put("phases.0.sizes.0.low", 9), r"sizes\[0\]\.low: expected 0 to high"),
    ("a size past its limit", put("phases.0.sizes.0.high", (1 << 31) + 1), r"sizes\[0\]\.low: expected 0 to high"),
    ("many sizes", sizes(65), r"\$\.phases\[0\]\.sizes: expected at most 64 entries, found 65"),
    ("weights without an axis", put("weights.0.shape", []), r"\$\.weights\[0\]\.shape: expected an axis or more"),
    ("a source without an axis", put("weights.0.sources.0.shape", []), r"sources\[0\]\.shape: expected an axis or mo"),
    (
        "a weight elsewhere",
        put("weights.0.placement", "pinned_host"),
        r"\$\.weights\[0\]\.placement: expected 'device'",
    ),
    ("a launch elsewhere", put("phases.0.launches.0.placement", "cpu"), r"launches\[0\]\.placement: expected 'device'"),
    ("many islands", islands(65537), r"\$\.islands: expected at most 65536 entries"),
    (
        "an island twice",
        twice("islands"),
        r"\$\.islands\[2\]\.name: expected a name not used before, found 'island\.0'",
    ),
    ("an island of no digest", put("islands.0.sha256", "0"), r"\$\.islands\[0\]\.sha256: expected 64 hexadecimal"),
    ("an island of no bytes", put("islands.0.length", 0), r"\$\.islands\[0\]\.length: expected 1 to"),
    ("an island longer than all", put("islands.0.length", 1 << 40), r"\$\.islands\[0\]\.length: expected 1 to"),
    ("an island past the section", put("islands.1.offset", 1 << 20), r"\$\.islands\[1\]\.offset: expected 0 to"),
    ("an island before the section", put("islands.0.offset", -1), r"\$\.islands\[0\]\.offset: expected 0 to"),
    ("an island of no nodes", put("islands.0.nodes", []), r"\$\.islands\[0\]\.nodes: expected at least one"),
    ("an island's node with an escape", put("islands.0.nodes", ["\x1b"]), r"\$\.islands\[0\]\.nodes: expected print"),
    ("an input with an escape", put("islands.0.inputs.0", "\x1b"), r"\$\.islands\[0\]\.inputs: expected printable"),
    ("an output's essay", put("islands.0.outputs.0", "x" * 5000), r"\$\.islands\[0\]\.outputs: expected printable"),
]


def sum_of(parts: list[Any]) -> Any:
    half = len(parts) // 2
    return binary("add", sum_of(parts[:half]), sum_of(parts[half:])) if half else parts[0]


def view_of_sums(tree: dict[str, Any]) -> None:
    """Each axis is legal, their product has 900 terms."""
    names = [f"n{i}" for i in range(30)]
    tree["phases"][0]["sizes"] += [{"name": name, "low": 0, "high": 0, "lives": "key"} for name in names]
    axis = sum_of([{"type": "size", "name": name} for name in names])
    put("phases.0.buffers.6.shape", [axis, axis, axis])(tree)


MEMORY: list[tuple[str, Change, str]] = [
    ("a buffer of a size under 0", put("phases.0.buffers.2.shape.0", binary("sub", N, 1)), r"buffers\[2\]\.shape: ex"),
    (
        "a buffer of no size",
        put("phases.0.buffers.2.shape.0", {"type": "size", "name": "M"}),
        r"sizes among \['K', 'N'\]",
    ),
    ("a view of no buffer", put("phases.0.buffers.6.view_of", 7), r"buffers\[6\]\.view_of: expected an index below 7"),
    (
        "a view of itself",
        put("phases.0.buffers.6.view_of", 6),
        r"buffers\[6\]\.view_of: expected a buffer that is no v",
    ),
    (
        "a view of a view",
        put("phases.0.buffers.2.view_of", 6),
        r"buffers\[2\]\.view_of: expected a buffer that is no view itself",
    ),
    ("a view of another type", put("phases.0.buffers.6.dtype", "int32"), r"buffers\[6\]\.view_of: expected type, off"),
    ("a view elsewhere", put("phases.0.buffers.6.offset", 0), r"buffers\[6\]\.view_of: expected type, offset and byt"),
    (
        "a view of more bytes",
        all_of(put("arena_bytes", 1024), put("phases.0.buffers.6.bytes", 512)),
        r"buffers\[6\]\.view_of: expected type, offset and bytes of 'node\.y0'",
    ),
    (
        "a view of other elements",
        put("phases.0.buffers.6.shape", [N]),
        r"buffers\[6\]\.shape: expected \(4 \* N\) elem",
    ),
    ("a view of sums", view_of_sums, r"buffers\[6\]\.shape: expected a size that is a sum of at most 256 products"),
    (
        "a view before its buffer",
        put("phases.0.buffers.2.first", 1),
        r"launches\[0\]\.operands\[1\]\.index: expected a buffer al",
    ),
    ("a view after its buffer", put("phases.0.buffers.6.last", 2), r"buffers\[6\]\.first: expected launches of 0 to 1"),
    ("no buffer of its own", put("phases.0.buffers.6.view_of", None), r"expected no byte shared with 'node"),
    ("a host value twice", twice("phases.0.values"), r"\.values\[2\]\.name: expected a name not used before"),
    (
        "a host value's essay",
        put("phases.0.values.0.type", "x" * 5000),
        r"\.values\[0\]\.type: expected printable text",
    ),
]

PORTS: list[tuple[str, Change, str]] = [
    ("an argument twice", twice("phases.0.arguments"), r"\.arguments\[3\]\.name: expected a name not used before"),
    (
        "a result without a name",
        put("phases.0.results.0.name", ""),
        r"\.results\[0\]\.name: expected a short printable",
    ),
    (
        "an argument of no buffer",
        put("phases.0.arguments.0.index", 7),
        r"arguments\[0\]\.index: expected an index below",
    ),
    ("a result of no value", put("phases.0.results.1.index", 2), r"results\[1\]\.index: expected an index below 2"),
    ("an argument's type with an escape", put("phases.0.arguments.0.type", "\x1b"), r"arguments\[0\]\.type: expected"),
    ("an argument of many axes", put("phases.0.arguments.2.shape", [1] * 9), r"arguments\[2\]\.shape: expected at mo"),
    (
        "a size that nobody declares",
        put("phases.0.arguments.2.shape", [N | {"name": "L"}]),
        r"sizes among \['K', 'N'\]",
    ),
    ("a shape unlike its buffer's", put("phases.0.arguments.0.shape", [N, 5]), r"arguments\[0\]\.shape: expected that"),
    (
        "an axis that is not known",
        put("phases.0.arguments.0.shape", [N, None]),
        r"arguments\[0\]\.shape: expected that",
    ),
    (
        "a rank that is not known",
        put("phases.0.arguments.0.shape", None),
        r"arguments\[0\]\.shape: expected that of it",
    ),
    ("an input of no name", drop("phases.0.arguments", 1), r"\.arguments: expected buffers \(0, 1\), found \[0\]"),
    ("an output of no name", drop("phases.0.results", 0), r"\.results: expected buffers \(5,\), found \[\]"),
    ("a name of no input", put("phases.0.inputs", [0]), r"\.arguments: expected buffers \(0,\), found \[0, 1\]"),
    (
        "an input of later",
        put("phases.0.inputs", [0, 1, 4]),
        r"inputs\[2\]: expected alive at launch 0, found 'picked'",
    ),
    ("an output of before", put("phases.0.outputs", [3]), r"outputs\[0\]: expected alive at launch 4"),
]

LAUNCHES: list[tuple[str, Change, str]] = [
    ("an unknown op", put("phases.0.launches.0.op", "think"), r"launches\[0\]\.op: expected an op that hjgc knows"),
    ("a role of no tensor op", operand(0, 0, role="x"), r"operands\[0\]\.role: expected a role of elementwise, once"),
    ("a role twice", operand(2, 1, role="x0"), r"operands\[1\]\.role: expected a role of island, once, found 'x0'"),
    ("a result that is read", operand(0, 1, access="read"), r"operands\[1\]\.access: expected write, found read"),
    ("an operand that is written", operand(0, 0, access="write"), r"operands\[0\]\.access: expected read, found write"),
    ("parameters of a tensor op", operand(0, 0, space="parameters"), r"operands\[0\]\.space: expected what x0 needs"),
    ("a host value for a launch", operand(0, 0, **VALUE), r"operands\[0\]\.space: expected buffer or weight or const"),
    ("a result in a weight", operand(0, 1, space="weight", index=0), r"operands\[1\]\.space: expected buffer, found"),
    (
        "an island's in a weight",
        operand(2, 3, space="weight"),
        r"operands\[3\]\.space: expected buffer or value, found",
    ),
    ("an island of a state", operand(2, 2, space="state"), r"operands\[2\]\.space: expected buffer or weight or const"),
    ("an operand of no buffer", operand(0, 0, index=7), r"operands\[0\]\.index: expected an index below 7, found 7"),
    ("an operand of no value", operand(3, 0, index=2), r"operands\[0\]\.index: expected an index below 2, found 2"),
    ("an operand that is dead", operand(0, 0, index=4), r"operands\[0\]\.index: expected a buffer alive at launch 0"),
    ("a result over its operand", operand(0, 0, index=2), r"operands\[1\]: expected memory of its own, found another"),
    (
        "a weight on the host for a launch",
        all_of(put("weights.0.placement", "cpu"), operand(0, 0, space="weight", index=0)),
        r"operands\[0\]\.index: expected a weight on the device, found 'weight'",
    ),
    ("a gap among results", operand(0, 1, role="y1"), r"operands: expected results y0, y1, \.\.\. without a gap"),
    ("a launch of no result", drop("phases.0.launches.0.operands", 1), r"operands: expected results y0, y1, \.\.\."),
    ("a result of another shape", put("phases.0.buffers.3.shape", [N]), r"launches\[1\]\.operands: expected y0 as .*N"),
    (
        "a result of another type",
        put("phases.0.buffers.3.dtype", "int32"),
        r"launches\[1\]\.operands: expected y0 as .*float32.*found .*int32",
    ),
    (
        "an expression of no function",
        put("phases.0.launches.0.attributes.expression", "import(x0)"),
        r"launches\[0\]\.operands: elementwise: expected a function of elements, found 'import'",
    ),
    (
        "an attribute missing",
        put("phases.0.launches.0.attributes", {}),
        r"attributes: expected \['expression'\], found",
    ),
    (
        "an attribute too many",
        put("phases.0.launches.2.attributes", {"a": 1}),
        r"attributes: expected \[\], found \['a'",
    ),
    (
        "an attribute of another type",
        put("phases.0.launches.0.attributes.expression", 1),
        r"attributes\.expression: expected a str that float32 holds",
    ),
    ("a launch on another card", put("phases.0.launches.0.device", 1), r"launches\[0\]\.device: expected 0, found 1"),
]

KERNELS: list[tuple[str, Change, str]] = [
    (
        "an island's reference",
        put("phases.0.launches.2.kernels.cpu", {"type": "reference"}),
        r"launches\[2\]\.kernels\.cpu: expected an island for an op of one",
    ),
    (
        "an island for a launch",
        put("phases.0.launches.0.kernels.cpu", {"type": "island", "island": 0}),
        r"launches\[0\]\.kernels\.cpu: expected an island for an op of one",
    ),
    (
        "a host call for an island",
        put("phases.0.launches.2.kernels.cpu", {"type": "host", "callback": "think"}),
        r"launches\[2\]\.kernels\.cpu: expected a host call for an op of the host's",
    ),
    (
        "an island that is not there",
        put("phases.0.launches.2.kernels.cpu.island", 2),
        r"kernels\.cpu\.island: expected an index below 2, found 2",
    ),
    (
        "the island of other operands",
        put("phases.0.launches.2.kernels.cpu.island", 1),
        r"kernels\.cpu\.island: expected \(1, 1\) operands and results, found \(3, 1\)",
    ),
    (
        "an island's operand left out",
        drop("phases.0.launches.2.operands", 1),
        r"kernels\.cpu\.island: expected operands x0, x1, \.\.\. and y0, y1, \.\.\. without a gap",
    ),
    ("no kernel", put("phases.0.launches.0.kernels", {}), r"kernels: expected one for each of \['cpu'\], found \[\]"),
]

SCHEDULES: list[tuple[str, Change, str]] = [
    (
        "an island that is captured",
        put(f"{SEGMENTS}.0.launches", [0, 1, 2]),
        r"segments\[0\]\.launches: expected no island, found 'island\.0'",
    ),
    ("buckets of a function", put(f"{SEGMENTS}.0.key.buckets", [8]), r"key\.buckets: expected none for a function"),
    ("a key without a size", put(f"{SEGMENTS}.0.key.sizes", ["N"]), r"key\.sizes: expected \('N', 'K'\), found"),
    ("dynamic for no reason", put(f"{SEGMENTS}.1.reasons", []), r"segments\[1\]\.reasons: expected at least one"),
    ("the reason of another", put(f"{SEGMENTS}.1.reasons.0.launch", 0), r"reasons\[0\]\.launch: expected a launch of"),
    ("segments turned round", turn(SEGMENTS), r"segments: expected launches in rising order"),
    (
        "a view ordered before its buffer is written",
        put("phases.0.edges", [[1, 2, "full"], [2, 3, "full"], [3, 4, "full"]]),
        r"segments: expected launch 0 ordered before 1",
    ),
    (
        "an island ordered before its operand is written",
        put("phases.0.edges", [[0, 1, "full"], [0, 2, "full"], [2, 3, "full"], [3, 4, "full"]]),
        r"segments: expected launch 1 ordered before 2",
    ),
    (
        "a read of what an island has not written",
        all_of(put(SEGMENTS, [{"type": "static", "launches": [4], "key": {"sizes": ["N", "K"], "buckets": []}}])),
        r"segments: expected 'picked' written before launch 4 reads it",
    ),
    ("an edge back", put("phases.0.edges.0", [1, 0, "full"]), r"edges\[0\]: expected before < after < 5"),
]


@pytest.mark.parametrize(
    ("change", "words"),
    [pytest.param(*row[1:], id=row[0]) for row in HEADER + MEMORY + PORTS + LAUNCHES + KERNELS + SCHEDULES],
)
def test_a_function_is_refused_for(change: Change, words: str) -> None:
    plan, sections = function_plan()
    with pytest.raises(PlanError, match=words):
        verify(broken(plan, change), sections, Path("p.hjg"))


@pytest.mark.parametrize("error", [ValueError, IndexError, TypeError, OverflowError, RecursionError, ZeroDivisionError])
def test_an_op_that_stumbles_over_its_operands_refuses_them(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def stumble(*_: object) -> NoReturn:
        raise error("no such axis")

    stumbling = replace(all_ops()["elementwise"], infer=stumble)
    monkeypatch.setattr(verify_launch, "all_ops", lambda: {**all_ops(), "elementwise": stumbling})
    plan, sections = function_plan()
    with pytest.raises(PlanError, match=r"launches\[0\]\.operands: elementwise: no such axis"):
        verify(plan, sections, Path("p.hjg"))


LEGAL: list[tuple[str, Change]] = [
    ("nothing", nothing),
    ("an island's weight on the host", put("weights.0.placement", "cpu")),
    ("a size with dots", all_of(put("phases.0.sizes.1.name", "text.0"), put("phases.0.arguments.2.shape", None),
                                put("phases.0.results.1.shape", [None]),
                                *(put(f"{SEGMENTS}.{i}.key.sizes", ["N", "text.0"]) for i in (0, 2)))),
    ("a size that may be anything", put("phases.0.sizes.1.high", 1 << 31)),
]  # fmt: skip


@pytest.mark.parametrize("change", [pytest.param(row[1], id=row[0]) for row in LEGAL])
def test_a_function_may_have(change: Change) -> None:
    plan, sections = function_plan()
    verify(broken(plan, change), sections, Path("p.hjg"))


PORT = {"name": "a", "space": "buffer", "index": 0, "type": "tensor(float)", "shape": None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("phases.0.arguments", [PORT]), r"phases\[0\]\.arguments: expected none, found 'token'"),
        (put("phases.0.results", [PORT]), r"phases\[0\]\.arguments: expected none, found 'token'"),
        (put("weights.0.placement", "cpu"), r"\$\.weights\[0\]\.placement: expected 'device'"),
    ],
)
def test_a_decoder_has_nothing_of_a_function(change: Change, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        verify(broken(small_plan(), change), {"constants": len(CONSTANTS)}, Path("p.hjg"))
