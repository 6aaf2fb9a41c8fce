"""Which decoder is this graph? Lifted to a small vocabulary, the cache in place of the concatenation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from hjgc.compiler.attention.evaluate import SHAPES, cone
from hjgc.compiler.attention.meanings import has_meaning
from hjgc.compiler.attention.regions import ATTENTION, PARTS, AttentionFinder
from hjgc.compiler.check_onnx import written_by
from hjgc.compiler.errors import CallerError
from hjgc.compiler.foreign import ISLAND, Foreign, lift_foreign
from hjgc.compiler.interface import Interface, read_interface, unknown_inputs
from hjgc.compiler.quantised import lift_quantised
from hjgc.compiler.rules import fuse, lift
from hjgc.compiler.rules.rule import DOMAIN, Journal, apply_rules, is_op, node_name, source_nodes
from hjgc.compiler.simplify import simplify
from hjgc.plan_format.checker import brief
from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.ops.declaration import LOGITS_PROCESSOR, is_function_name
from hjgc.plan_format.structs import Note

LAUNCHABLE = ("Embedding", "RotaryAngles", "AttentionInputs", "Attention", "Linear", "GatedLinear", "RmsNorm",
              "VocabularyLogits", "HostCall", "Dequantise", ISLAND)  # fmt: skip
IN_PATTERNS = frozenset(
    ("Add", "Cos", "Gather", "MatMul", "Mul", "RMSNormalization", "Sigmoid", "Sin", "Split", "Transpose")
)
"""The ONNX operators that a rule may match: any other that computes with numbers stands in the way itself."""


@dataclass(frozen=True)
class Recognised:
    """The graph in our vocabulary, the rules that matched but did not fire, and what is left to ONNX Runtime: the
    nodes that each `Island` of the graph stands for. `most_tokens`: that the file's own caches hold, if that is fixed.
    """

    model: ir.Model
    notes: tuple[Note, ...]
    foreign: tuple[Foreign, ...] = ()
    most_tokens: int | None = None


def recognise(model: ir.Model, path: Path) -> Recognised:
    """Rewrite the graph in place. Raises CompileError that names the first node no rule covers; CallerError where the
    graph calls a function of the caller's, so that it can be nothing but a decoder."""
    calls = any(is_op(node, "HostFunction") for node in model.graph)
    try:
        return _recognise(model, path)
    except CompileError as error:
        if calls:
            raise CallerError(error.place, error.problem, field=error.field, next_step=error.next_step) from None
        raise


def _recognise(model: ir.Model, path: Path) -> Recognised:
    journal = Journal()
    lift_quantised(model, journal)
    interface = read_interface(model, path)
    _check_host_functions(model, path)
    _check_inputs(interface, path)
    most_tokens = interface.most_tokens()
    drop_counted_outputs(model, interface)
    _check_outputs(model, (interface.logits, *interface.presents), path)
    simplify(model, interface, journal)
    apply_rules(model, lift.RULES, journal)
    attention = AttentionFinder(model, interface, journal).replace_all()
    apply_rules(model, fuse.RULES, journal)
    RemoveUnusedNodesPass()(model)
    foreign = _leave_to_islands(model, journal, attention, interface.ids, path)
    _check_outputs(model, tuple(value for value in model.graph.outputs if value not in interface.presents), path)
    _check_head(model, path)
    return Recognised(model, _standing(journal, model), foreign, most_tokens)


def _standing(journal: Journal, model: ir.Model) -> tuple[Note, ...]:
    """The notes on nodes that are still there: where another rule took the node, nothing is missed."""
    names = {node_name(node) for node in model.graph}
    return tuple(note for note in journal.notes.values() if note.node in names)


def drop_counted_outputs(model: ir.Model, interface: Interface) -> None:
    """What follows from lengths and positions alone, such as a count of tokens, nobody has to be told."""
    kept = [value for value in model.graph.outputs if not _is_counted(value, interface)]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)


def _is_counted(value: ir.Value, interface: Interface) -> bool:
    if value is interface.logits or value in interface.presents:
        return False
    nodes = [node for node in cone([value], set()) if node.op_type not in SHAPES]
    taken = {operand for node in nodes for operand in node.inputs if operand is not None} | {value}
    sources = (operand for operand in taken if operand.producer() is None)
    return all(source.is_initializer() or source in interface.others for source in sources)


def _check_inputs(interface: Interface, path: Path) -> None:
    """Nothing is wanted that nobody knows."""
    for value in unknown_inputs(interface):
        if value.uses():
            problem = "expected token ids, positions, masks, lengths and caches, found none of these by its name"
            raise CompileError(path, problem, field=f"input {value.name}", next_step="export it without this input")


def _check_outputs(model: ir.Model, allowed: tuple[ir.Value, ...], path: Path) -> None:
    """Nothing is asked for that a plan cannot give: hidden states, another layer's cache."""
    for value in model.graph.outputs:
        if value not in allowed:
            problem = "expected logits and each layer's keys and values with new rows, found more"
            raise CompileError(path, problem, field=f"output {value.name}", next_step="export it without this output")


def _check_host_functions(model: ir.Model, path: Path) -> None:
    """Each names a function of one operand and one result. Where it may stand, a rule says."""
    for node in model.graph:
        problem = _host_function_problem(node) if is_op(node, "HostFunction") else None
        if problem is not None:
            raise CompileError(
                path,
                f"expected hjgc.HostFunction with {problem}",
                field=f"node {node_name(node)}",
                next_step="write it as HostFunction(x) -> y with a string attribute `name`",
            )


def _host_function_problem(node: ir.Node) -> str | None:
    """What was expected, and found."""
    if len(node.inputs) != 1 or node.inputs[0] is None or len(node.outputs) != 1:
        return f"one operand and one result, found {len(node.inputs)} and {len(node.outputs)}"
    if set(node.attributes) != {"name"} or node.attributes["name"].type != ir.AttributeType.STRING:
        return f"a string attribute `name` alone, found {', '.join(sorted(node.attributes)) or 'none'}"
    name = node.attributes["name"].as_string()
    if not is_function_name(name):
        wanted = f"a name of up to 64 letters, digits and _, other than {LOGITS_PROCESSOR!r}"
        return f"{wanted}, found {brief(name)}"
    return None


def _check_head(model: ir.Model, path: Path) -> None:
    (logits,) = model.graph.outputs
    if not is_op(logits.producer(), "VocabularyLogits"):
        maker = logits.producer()
        problem = "expected logits from a norm and a product with the vocabulary, one right behind the other"
        found = "nothing" if maker is None else maker.op_type
        raise CompileError(
            path, f"{problem}, found {found}", field="output logits", next_step="export it with `hjgc export`"
        )


def _leave_to_islands(
    model: ir.Model, journal: Journal, attention: set[ir.Node], ids: ir.Value, path: Path
) -> tuple[Foreign, ...]:
    """What no rule covers goes to ONNX Runtime, if it works on rows alone. `attention`: the nodes of attention that is
    not ours, which the journal gives a reason for. Raises CompileError that names a node and what stopped the rules."""
    leftovers = [node for node in model.graph if not _is_covered(node)]
    if not leftovers:
        return ()
    alone = ""
    others = {note.node for note in journal.notes.values() if note.rule == ATTENTION}
    if not any(node_name(node) in others for node in leftovers):  # what attends in another way looks at other rows
        found = lift_foreign(model, leftovers, ids)
        if not isinstance(found, str):
            return tuple(found)
        alone = f"; ONNX Runtime cannot compute it between launches: {found}"
    why = _reasons(journal)
    refused = {note.node: note.rule for note in journal.notes.values() if note.rule in (ATTENTION, PARTS)}
    numbers = _of_numbers(model, ids) - {node for node in attention if has_meaning(node)}
    node = min(leftovers, key=lambda node: _likelihood(node, why, refused, numbers))
    near = f" ({'; '.join(why[node_name(node)])})" if node_name(node) in why else ""
    if not near or refused.get(node_name(node)) == PARTS:
        near += _near_host_function(model)
    raise CompileError(
        path,
        f"expected an operator that a rule covers, found {node.domain or 'ai.onnx'}.{node.op_type}{near}"
        + written_by(model)
        + alone,
        field=f"node {node_name(node)}",
        next_step="export the model with `hjgc export`, or report this graph",
    )


def _near_host_function(model: ir.Model) -> str:
    """What may have kept a rule from matching where none says so."""
    node = next((node for node in model.graph if is_op(node, "HostCall")), None)
    if node is None:
        return ""
    return f" (the host function at node {source_nodes(node)[0]} fits between two launches only: is it inside of one?)"


def _reasons(journal: Journal) -> dict[str, list[str]]:
    """What stopped each rule that tried a node, each reason once, by node."""
    found: dict[str, dict[str, None]] = {}
    for note in journal.notes.values():
        found.setdefault(note.node, {})[note.why] = None
    return {node: list(reasons) for node, reasons in found.items()}


def _of_numbers(model: ir.Model, ids: ir.Value) -> set[ir.Node]:
    """The nodes that compute with token ids or activations: masks, positions and sizes are not among them."""
    found: set[ir.Node] = set()
    for node in model.graph:
        makers = [value.producer() for value in node.inputs if value is not None]
        own = node.domain == DOMAIN and node.op_type not in ("RotaryAngles", "Dequantise")
        own = own or (node.op_type not in SHAPES and any(value is ids for value in node.inputs))
        own = own or any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
        if own or (node.op_type not in SHAPES and any(maker in found for maker in makers)):
            found.add(node)
    return found


def _likelihood(node: ir.Node, why: dict[str, list[str]], refused: dict[str, str], numbers: set[ir.Node]) -> int:
    """How far the node is from the cause. 0: attention that computes something else, or the caller's function. 1: no
    rule knows the operator. 2: a rule said what stopped it. 3: attention that lacks a part. 4: it computes with
    activations. 5: with sizes."""
    name = node_name(node)
    if is_op(node, "HostFunction"):
        return 0
    if name in refused:
        return 0 if refused[name] == ATTENTION else 3
    known = node.domain == DOMAIN or (node.domain in ("", "ai.onnx") and node.op_type in IN_PATTERNS)
    if not known and node in numbers:
        return 1
    if name in why:
        return 2
    return 4 if node in numbers else 5


def _is_covered(node: ir.Node) -> bool:
    if node.domain == DOMAIN:
        return node.op_type in LAUNCHABLE
    source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    return node.op_type in ("Cos", "Sin") and is_op(source, "RotaryAngles")
