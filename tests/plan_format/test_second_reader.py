"""Is docs/plan-format.md enough to read a plan by?

The reader below was written from that page with `struct`, `hashlib` and `msgpack`, and imports nothing of hjgc's.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest

from hjgc.plan_format import encode, load
from hjgc.plan_format.sizes import evaluate
from hjgc.plan_format.structs import Plan

KINDS = ["plan", "debug", "constants", "cubin", "ptx", "islands", "templates"]
WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint32": 4, "uint8": 1, "bool": 1}
Tree = dict[str, Any]


def read_sections(raw: bytes) -> dict[str, bytes]:
    magic, version, count = struct.unpack_from("<8sII", raw, 0)
    assert (magic, version) == (b"HJGCPLAN", 1)
    table = raw[48 : 48 + 64 * count]
    assert hashlib.sha256(table).digest() == raw[16:48]
    sections: dict[str, bytes] = {}
    end = 48 + 64 * count
    for i in range(count):
        kind, offset, length, digest = struct.unpack_from("<16sQQ32s", table, 64 * i)
        assert offset == -(-end // 4096) * 4096
        assert not any(raw[end:offset])
        data = raw[offset : offset + length]
        assert len(data) == length > 0
        assert hashlib.sha256(data).digest() == digest
        sections[kind.rstrip(b"\0").decode()] = data
        end = offset + length
    assert end == len(raw)
    assert list(sections) == [kind for kind in KINDS if kind in sections]
    return sections


def compute(expression: int | Tree, tokens: int) -> int:
    if isinstance(expression, int):
        return expression
    if expression["type"] == "size":
        return {"tokens": tokens}[expression["name"]]
    left, right = compute(expression["left"], tokens), compute(expression["right"], tokens)
    match expression["operation"]:
        case "add":
            return left + right
        case "sub":
            return left - right
        case "mul":
            return left * right
        case "ceil_div":
            return -(-left // right)
        case "min":
            return min(left, right)
        case _:
            return max(left, right)


def read_weight(plan: Tree, weight: Tree, root: Path) -> bytes:
    """A packed weight's bytes where no conversion is asked for: sources sliced, transposed, stacked."""
    rows: list[bytes] = []
    for source in weight["sources"]:
        assert source["dtype"] == weight["dtype"]
        name = plan["files"][source["file"]]["name"]
        data = (root / name).read_bytes()[source["offset"] :][: source["length"]]
        values = np.frombuffer(data, f"V{WIDTH[source['dtype']]}").reshape(source["shape"])
        values = values[source.get("slice_start") : source.get("slice_stop")]
        rows.append((values.T if source.get("transpose") else values).tobytes())
    return b"".join(rows)


def sampled_blocks(path: Path) -> str:
    data = path.read_bytes()
    starts = [max(0, len(data) - 4096) * i // 63 for i in range(64)]
    return hashlib.sha256(b"".join(data[start : start + 4096] for start in starts)).hexdigest()


@pytest.fixture(params=["compiled", "device", "small"])
def path(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_both_readers_see_the_same_plan(path: Path) -> None:
    sections = read_sections(path.read_bytes())
    tree = msgpack.unpackb(sections["plan"], strict_map_key=True)
    with load(path) as file:
        assert msgspec.convert(tree, Plan) == file.plan
        assert {kind: len(data) for kind, data in sections.items()} == file.section_lengths()
        assert msgpack.packb(tree) == sections["plan"] == encode(file.plan)


def test_fields_left_out_have_the_defaults_that_the_page_names(path: Path) -> None:
    tree = msgpack.unpackb(read_sections(path.read_bytes())["plan"])
    with load(path) as file:
        for phase, seen in zip(tree["phases"], file.plan.phases, strict=True):
            edges = [(*edge, "full") if len(edge) == 2 else tuple(edge) for edge in phase["edges"]]
            assert edges == [(edge.before, edge.after, edge.kind) for edge in seen.edges]
            for launch, same in zip(phase["launches"], seen.launches, strict=True):
                assert launch.get("attributes", {}) == same.attributes
                assert launch.get("placement", "device") == same.placement


def test_both_readers_compute_the_same_shapes_and_grids(path: Path) -> None:
    tree = msgpack.unpackb(read_sections(path.read_bytes())["plan"])
    with load(path) as file:
        for phase, seen in zip(tree["phases"], file.plan.phases, strict=True):
            for buffer, same in zip(phase["buffers"], seen.buffers, strict=True):
                for tokens in (1, 7):
                    assert [compute(axis, tokens) for axis in buffer["shape"]] == [
                        evaluate(axis, {"tokens": tokens}) for axis in same.shape
                    ]


def test_the_ledger_is_the_sum_of_the_tables(path: Path) -> None:
    tree = msgpack.unpackb(read_sections(path.read_bytes())["plan"])
    caches = [s for s in tree["states"] if s["kind"] in ("full_cache", "ring_cache")]
    parts = {
        "weights": sum(weight["bytes"] for weight in tree["weights"]),
        "arena": tree["arena_bytes"],
        "states": sum(state["bytes"] for state in tree["states"]),
        "constants": sum(constant["length"] for constant in tree["constants"]),
        "parameters": tree["parameters"]["bytes"],
    }
    graph = {
        f"{phase['name']}/{schedule['name']}": 4096
        * sum(len(segment["launches"]) for segment in schedule["segments"] if segment["type"] == "static")
        for phase in tree["phases"]
        for schedule in phase["schedules"]
    }
    per_token = sum(state["shape"][0] * state["shape"][2] * WIDTH[state["dtype"]] for state in caches)
    ledger = tree["ledger"]
    assert ledger == {**parts, "kv_per_token": per_token, "graph": graph, "total": sum(parts.values())}


def test_weights_are_found_where_the_page_says(compiled: Path) -> None:
    tree = msgpack.unpackb(read_sections(compiled.read_bytes())["plan"])
    root = compiled.parent
    for weight in tree["weights"]:
        assert len(read_weight(tree, weight, root)) == weight["bytes"]
    for file in tree["files"]:
        data = (root / file["name"]).read_bytes()
        assert file["bytes"] == len(data)
        assert file["head_sha256"] == hashlib.sha256(data[:65536]).hexdigest()
        assert file["sample_sha256"] == sampled_blocks(root / file["name"])
