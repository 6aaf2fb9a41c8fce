"""May launches of ours compute what no rule of a decoder covers?

The sub-model that ONNX Runtime would run is lowered as functions are. It was tried on made-up rows, so that each row is
what it is without the others; and so any kernel will do, whichever rows of a call it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from hjgc.compiler.function import contents
from hjgc.compiler.function.fuse import fuse
from hjgc.compiler.function.fusion import fuse_for_gpus
from hjgc.compiler.function.fusion.flow import Workshop, buffer_of
from hjgc.compiler.function.islands import SubModel
from hjgc.compiler.function.lowering import Context
from hjgc.compiler.function.network import normalise
from hjgc.compiler.function.rules import register_all
from hjgc.compiler.program import Step, Tensor
from hjgc.compiler.tables import Tables
from hjgc.plan_format.sizes import SizeDeclaration

MOST_AXES = 2
"""Of a decoder's weights."""
Name = Callable[[str], str]
"""A name for a step of this op that no other step of the program has."""


@dataclass(frozen=True)
class Surroundings:
    """The phase and the targets that the launches are for, and where their constants go."""

    tables: Tables
    sizes: Mapping[str, SizeDeclaration]
    targets: tuple[str, ...]
    path: Path


@dataclass(frozen=True)
class RowLaunches:
    """The steps in order, and the tensors that hold the sub-model's results."""

    steps: tuple[Step, ...]
    results: tuple[Tensor, ...]


def row_launches(
    made: SubModel, rows: Sequence[Tensor], columns: Sequence[int], around: Surroundings, name: Name
) -> RowLaunches | None:
    """The sub-model, whose rows come as [1, tokens, H], as launches over rows [tokens, H], with results of so many
    columns; None if ONNX Runtime must run it."""
    if len(made.inputs) != len(rows):  # it takes weights, too large to lie in the plan
        return None
    register_all()
    model = normalise(ir.serde.deserialize_model(onnx.load_from_string(made.data)), around.path)
    context = Context(around.tables, model.graph, model.opset_imports, around.sizes, around.targets)
    batched = [replace(x, name=f"{x.name}.batched", shape=(1, *x.shape), base=x.base or x.name) for x in rows]
    context.held |= dict(zip(model.graph.inputs, batched, strict=True))
    if not all(_visit(context, node) for node in model.graph):
        return None
    results = [context.hold(value) for value in model.graph.outputs]
    tensors = [tensor for tensor in results if isinstance(tensor, Tensor)]
    shapes = [(1, *rows[0].shape[:1], width) for width in columns]
    if [tuple(tensor.shape) for tensor in tensors] != shapes or any(x.space != "buffer" for x in tensors):
        return None
    steps = [step for node in model.graph for step in context.steps.get(node, ())]
    kept = [buffer_of(tensor) for tensor in tensors]
    fused = fuse(steps, kept)
    if around.targets:
        fused = fuse_for_gpus(fused, kept, Workshop(around.tables, around.targets, context.limits, context.unique))
    if any(x.space == "weight" and len(x.shape) > MOST_AXES for step in fused for x in step.operands.values()):
        return None
    if not set(kept) <= {tensor.name for step in fused for role, tensor in step.operands.items() if role[0] == "y"}:
        return None  # a result is one of the rows as they came
    unbatched = [replace(x, name=f"{x.name}.rows", shape=x.shape[1:], base=buffer_of(x)) for x in tensors]
    return _renamed(fused, unbatched, made.nodes, name)


def _visit(context: Context, node: ir.Node) -> bool:
    """Sizes alone, or launches: whether it is one of them."""
    found = contents.of_node(node, node.version or 0, context.contents, context.shape, context.limits)
    if found is not None:
        context.known[node.outputs[0]] = found
        return True
    return context.lower(node) is None


def _renamed(steps: Sequence[Step], results: Sequence[Tensor], nodes: tuple[str, ...], name: Name) -> RowLaunches:
    """Steps and buffers under names of the program's."""
    names: dict[str, str] = {}
    found: list[Step] = []
    for step in steps:
        own = name(step.op)
        names |= {tensor.name: f"{own}.{role}" for role, tensor in step.operands.items() if role[0] == "y"}
        operands = {role: _under(names, tensor) for role, tensor in step.operands.items()}
        found.append(replace(step, name=own, operands=operands, nodes=nodes, values={}))
    return RowLaunches(tuple(found), tuple(_under(names, tensor) for tensor in results))


def _under(names: dict[str, str], tensor: Tensor) -> Tensor:
    """The tensor under its new name; a view under that of its buffer, with a number."""
    if tensor.space != "buffer" or buffer_of(tensor) not in names:
        return tensor
    if not tensor.base:
        return replace(tensor, name=names[tensor.name])
    base = names[tensor.base]
    return replace(tensor, name=names.setdefault(tensor.name, f"{base}.view.{len(names)}"), base=base)
