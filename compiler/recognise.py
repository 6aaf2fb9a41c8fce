"""Which decoder is this graph? Lifted to a small vocabulary, the cache in place of the concatenation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from hjgc.compiler.rules import fuse, lift
from hjgc.compiler.rules.rule import DOMAIN, Journal, apply_rules, is_op, node_name
from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.structs import Note

LAUNCHABLE = ("Embedding", "RotaryAngles", "AttentionInputs", "Attention", "Linear", "GatedLinear", "RmsNorm",
              "VocabularyLogits")  # fmt: skip


@dataclass(frozen=True)
class Recognised:
    """The graph in our vocabulary, and the rules that matched but did not fire."""

    model: ir.Model
    notes: tuple[Note, ...]


def recognise(model: ir.Model, path: Path) -> Recognised:
    """Rewrite the graph in place. Raises CompileError that names the first node no rule covers."""
    journal = Journal()
    _check_interface(model, path)
    drop_weight_casts(model)
    keep_cache_in_place(model)
    apply_rules(model, lift.RULES, journal)
    apply_rules(model, fuse.RULES, journal)
    RemoveUnusedNodesPass()(model)
    _refuse_leftovers(model, journal, path)
    return Recognised(model, tuple(journal.notes.values()))


def _check_interface(model: ir.Model, path: Path) -> None:
    inputs = {value.name for value in model.graph.inputs}
    outputs = {value.name for value in model.graph.outputs}
    for name, found in (("input_ids", inputs), ("position_ids", inputs), ("logits", outputs)):
        if name not in found:
            raise CompileError(
                path, f"expected a decoder with input_ids, position_ids and logits, found {sorted(map(str, found))[:6]}",
                field=name, next_step="export it with `hjgc export`",
            )  # fmt: skip
    if not any((name or "").startswith("past_key_values.") for name in inputs):
        raise CompileError(
            path, "expected a key/value cache among the inputs, found none", field="past_key_values",
            next_step="export it with `hjgc export`",
        )  # fmt: skip


def drop_weight_casts(model: ir.Model) -> None:
    """A cast of a weight to another float says nothing: weights are converted when they are packed."""
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Cast" and node.inputs else None
        if source is not None and source.is_initializer() and source.dtype in floats:
            target = node.attributes.get_int("to", 0)
            if target in floats:
                ir.convenience.replace_all_uses_with(node.outputs[0], source)
                model.graph.remove(node, safe=True)


def keep_cache_in_place(model: ir.Model) -> None:
    """`present = Concat(past, new)` is an append to a cache that stays where it is: no output of the graph."""
    kept = [value for value in model.graph.outputs if not _appends_to_past(value)]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)


def _appends_to_past(value: ir.Value) -> bool:
    node = value.producer()
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2 or node.attributes.get_int("axis", 0) != 2:
        return False
    past = node.inputs[0]
    return past is not None and past.is_graph_input() and (past.name or "").startswith("past_key_values.")


def _refuse_leftovers(model: ir.Model, journal: Journal, path: Path) -> None:
    leftovers = [node for node in model.graph if not _is_covered(node)]
    if not leftovers:
        return
    why = {note.node: note.why for note in journal.notes.values()}
    node = next((node for node in leftovers if node_name(node) in why), leftovers[0])
    near = f" ({why[node_name(node)]})" if node_name(node) in why else ""
    raise CompileError(
        path,
        f"expected an operator that a rule covers, found {node.domain or 'ai.onnx'}.{node.op_type}{near}"
        + _producer(model),
        field=f"node {node_name(node)}",
        next_step="export the model with `hjgc export`, or report this graph",
    )


def _is_covered(node: ir.Node) -> bool:
    if node.domain == DOMAIN:
        return node.op_type in LAUNCHABLE
    source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    return node.op_type in ("Cos", "Sin") and is_op(source, "RotaryAngles")


def _producer(model: ir.Model) -> str:
    return f", written by {model.producer_name} {model.producer_version or ''}".rstrip() if model.producer_name else ""
