"""Does Model Explorer get every launch of a plan, joined by what it reads, folded by layers, and with its reasons?"""

from __future__ import annotations

import dataclasses
import re
import runpy
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hjgc.plan_format import Plan, load
from hjgc.plan_format.errors import PlanError
from hjgc.plan_format.structs import DynamicSegment, Operand, Phase
from hjgc.tools.model_explorer import graphs as ours
from hjgc.tools.model_explorer.graphs import Graph, GraphNode, graphs
from tests.tools.command_line import write_small_plan
from tests.tools.plans_to_compare import PLAN_KINDS, compiled_plan, plan_of_kind, replace, rewritten

MAIN = "hjgc.tools.model_explorer.main"
NAMESPACE = re.compile(r"segment \d+ \((static|dynamic)\)(/layer \d+)?")


def seen(path: Path) -> tuple[Plan, list[Graph]]:
    with load(path) as file:
        return file.plan, graphs(file)


def numbers(phase: Phase) -> list[int]:
    schedule = next(schedule for schedule in phase.schedules if schedule.name == "default")
    return [number for segment in schedule.segments for number in segment.launches]


def said(node: GraphNode) -> dict[str, str]:
    return {attribute.key: attribute.value for attribute in node.attrs}


@pytest.mark.parametrize("kind", PLAN_KINDS)
def test_every_launch_of_a_phase_is_a_node_and_edges_join_what_writes_to_what_reads(kind: str, tmp_path: Path) -> None:
    plan, shown = seen(plan_of_kind(kind, tmp_path))
    assert [graph.id for graph in shown] == [phase.name for phase in plan.phases]
    for phase, graph in zip(plan.phases, shown, strict=True):
        assert [int(node.id) for node in graph.nodes] == numbers(phase)
        assert [said(node)["op"] for node in graph.nodes] == [phase.launches[n].op for n in numbers(phase)]
        for node in graph.nodes:
            assert sources(node) == expected_sources(phase, int(node.id))
            assert set(sources(node)) <= {item.id for item in node.inputsMetadata}
        outputs = {(node.id, item.id) for node in graph.nodes for item in node.outputsMetadata}
        assert {source for node in graph.nodes for source in sources(node).values()} <= outputs


def sources(node: GraphNode) -> dict[str, tuple[str, str]]:
    return {edge.targetNodeInputId: (edge.sourceNodeId, edge.sourceNodeOutputId) for edge in node.incomingEdges}


def expected_sources(phase: Phase, reader: int) -> dict[str, tuple[str, str]]:
    """Of each operand that a launch reads, the launch and operand that wrote there last; searched backwards."""
    found: dict[str, tuple[str, str]] = {}
    for place, operand in enumerate(phase.launches[reader].operands):
        before = [number for number in numbers(phase) if number < reader]
        writers = [(n, i) for n in before for i, o in enumerate(phase.launches[n].operands) if writes(o, operand)]
        if operand.access != "write" and writers:
            number, output = writers[-1]
            found[f"{place}"] = f"{number}", f"{output}"
    return found


def writes(writer: Operand, operand: Operand) -> bool:
    return writer.access != "read" and (writer.space, writer.index) == (operand.space, operand.index)


def test_a_dynamic_launch_says_so_and_why_and_so_does_its_segment(tmp_path: Path) -> None:
    plan, shown = seen(compiled_plan(tmp_path, function="steer"))
    for phase, graph in zip(plan.phases, shown, strict=True):
        (dynamic,) = (s for s in phase.schedules[0].segments if isinstance(s, DynamicSegment))
        for node in graph.nodes:
            expected = int(node.id) in dynamic.launches
            assert (said(node)["verdict"] == "dynamic") == node.label.endswith("(dynamic)") == expected
            assert ("<- ONNX node host/steer <- the caller's function 'steer'" in said(node).get("why", "")) == expected
        assert list(graph.groupNodeAttributes) == list(dict.fromkeys(n.namespace.split("/")[0] for n in graph.nodes))
        assert "host/steer" in graph.groupNodeAttributes["segment 1 (dynamic)"]["why"]
        assert "graphs" in graph.groupNodeAttributes["segment 0 (static)"]


def test_layers_fold_and_are_seen_to_be_alike(tmp_path: Path) -> None:
    _, (_, decode) = seen(compiled_plan(tmp_path))
    layers = [[n.label for n in decode.nodes if n.namespace == f"segment 0 (static)/layer {i}"] for i in range(2)]
    assert layers[0] == layers[1] == ["attention_inputs", "attention", "o_proj", "gated_linear", "down_proj"]
    outside = [node.label for node in decode.nodes if node.namespace == "segment 0 (static)"]
    assert outside == ["embedding", "rotary_table", "vocabulary_logits", "sample"]


def test_a_launch_tells_its_kernels_weights_costs_time_and_onnx_nodes(tmp_path: Path) -> None:
    _, (_, decode) = seen(plan_of_kind("gpu", tmp_path))
    node = next(node for node in decode.nodes if said(node)["op"] == "gated_linear")
    assert re.search(r"^sm_90: template \S+", said(node)["kernels"], re.MULTILINE)
    assert int(said(node)["flops"]) > 0 and int(said(node)["bytes"]) > 0 and float(said(node)["predicted us"]) > 0
    assert "rows after" in said(node)["costs are for"] and "weight: " in said(node)["weights"]
    _, (_, decode) = seen(compiled_plan(tmp_path))
    node = next(node for node in decode.nodes if said(node)["op"] == "gated_linear")
    assert "model.layers.0.mlp.up_proj/MatMul" in said(node)["ONNX nodes"].splitlines()
    assert {a.key: a.value for a in node.outputsMetadata[0].attrs}["shape"].startswith("float32[1, ")


def test_a_launch_that_writes_over_what_it_reads_is_joined_to_both_sides(tmp_path: Path) -> None:
    with load(write_small_plan(tmp_path)) as file:
        plan = file.plan
    phase = plan.phases[-1]
    reader = next(n for n in numbers(phase) if any(place == "0" for place in expected_sources(phase, n)))
    launch = phase.launches[reader]
    operands = (replace(launch.operands[0], access="read_write"), *launch.operands[1:])
    launches = tuple(replace(launch, operands=operands) if n == reader else one for n, one in enumerate(phase.launches))
    changed = replace(phase, launches=launches)
    graph = graphs(unverified(replace(plan, phases=(changed,))))[0]
    found = {int(node.id): sources(node) for node in graph.nodes}
    assert found == {n: expected_sources(changed, n) for n in numbers(changed)} and "0" in found[reader]


def test_counters_join_no_launches_since_each_leaves_them_at_zero(tmp_path: Path) -> None:
    with load(write_small_plan(tmp_path)) as file:
        plan = file.plan
    caches = {i for i, state in enumerate(plan.states) if state.kind == "full_cache"}
    states = tuple(replace(s, kind="counters") if i in caches else s for i, s in enumerate(plan.states))
    phase, graph = plan.phases[-1], graphs(unverified(replace(plan, states=states)))[-1]
    held = [(n, f"{i}") for n in numbers(phase) for i, o in enumerate(phase.launches[n].operands) if held_in(o, caches)]
    assert held and not {(int(node.id), place) for node in graph.nodes for place in sources(node)} & set(held)


def unverified(plan: Plan) -> Any:
    """As a file that holds such a plan would be, if it could be saved."""
    return SimpleNamespace(plan=plan, debug=lambda: None)


def held_in(operand: Operand, states: set[int]) -> bool:
    return operand.space == "state" and operand.index in states


@pytest.mark.parametrize(
    "name", ["<img src=x onerror=alert(1)>", "../../etc", "a/b;c", "__proto__", "7.", "٣.x", "9" * 200]
)
def test_names_from_outside_reach_neither_ids_nor_namespaces(name: str, tmp_path: Path) -> None:
    path = write_small_plan(tmp_path)
    plan, before = seen(path)
    _, after = seen(rewritten_by_name(path, name))
    for phase, old, new in zip(plan.phases, before, after, strict=True):
        assert [node.id for node in new.nodes] == [node.id for node in old.nodes]
        assert [node.incomingEdges for node in new.nodes] == [node.incomingEdges for node in old.nodes]
        assert all(NAMESPACE.fullmatch(node.namespace) and node.label for node in new.nodes)
        assert said(new.nodes[0])["launch"] == f"0: {name}" and len(new.nodes) == len(numbers(phase))


def rewritten_by_name(path: Path, name: str) -> Path:
    def phase(one: Phase) -> Phase:
        (first, *launches), (buffer, *buffers) = one.launches, one.buffers
        return replace(
            one, launches=(replace(first, name=name), *launches), buffers=(replace(buffer, name=name), *buffers)
        )

    return rewritten(path, lambda plan: replace(plan, phases=tuple(map(phase, plan.phases))))


def adapter(monkeypatch: pytest.MonkeyPatch, package: Any) -> dict[str, Any]:
    """What the file that Model Explorer imports defines, where this is the package."""
    monkeypatch.setitem(sys.modules, "model_explorer", package)
    return runpy.run_module(MAIN)


def test_the_adapter_opens_plans_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(Adapter=object, AdapterMetadata=SimpleNamespace)
    opened = adapter(monkeypatch, package)["PlanAdapter"]()
    assert opened.metadata.fileExts == ["hjg"]
    path = write_small_plan(tmp_path)
    assert opened.convert(str(path), {}) == {"graphs": seen(path)[1]}
    (tmp_path / "other.hjg").write_bytes(b"PK\x03\x04")
    with pytest.raises(PlanError, match="expected a plan that starts with"):
        opened.convert(str(tmp_path / "other.hjg"), {})


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=re.escape("pip install 'hjgc[explorer]'")):
        adapter(monkeypatch, None)


def test_model_explorer_itself_finds_the_adapter_and_takes_its_graphs(tmp_path: Path) -> None:
    builder = pytest.importorskip("model_explorer", reason="needs the extra explorer, half a gigabyte").graph_builder
    for one in (Graph, GraphNode, ours.IncomingEdge, ours.KeyValue, ours.MetadataItem):
        theirs = {field.name for field in dataclasses.fields(getattr(builder, one.__name__))}
        assert {field.name for field in dataclasses.fields(one)} <= theirs
    manager = import_module("model_explorer.extension_manager").ExtensionManager(["hjgc.tools.model_explorer"])
    manager.load_extensions()
    path = write_small_plan(tmp_path)
    command = {"extensionId": "hjgc", "cmdId": "convert", "modelPath": str(path), "settings": {}}
    assert manager.run_cmd(command) == {"graphs": [dataclasses.asdict(graph) for graph in seen(path)[1]]}
