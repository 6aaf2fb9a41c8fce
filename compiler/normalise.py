"""What does the graph say once functions are inlined and shape arithmetic is done? Nodes sorted, constants small."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer import fold_constants

from hjgc.plan_format.errors import CompileError

FOLD_BYTES = 4096
BRANCH_INPUT = "use_cache_branch"
"""What optimum calls the input that chooses a branch of its merged decoders."""


def normalise(model: ir.Model, path: Path) -> ir.Model:
    """Rewrite in place and return the model. Weights are never folded: that would pull them into memory.

    Raises CompileError for a graph that these passes refuse: nodes in a circle, functions that call themselves."""
    with refusing(path):
        _run_passes(model)
    return model


@contextmanager
def refusing(path: Path) -> Generator[None]:
    """Whatever the libraries raise becomes a CompileError."""
    try:
        yield
    except Exception as error:
        root = error.__cause__ or error
        words = " ".join(str(root).split())[:200] or type(root).__name__
        problem = f"expected a well-formed graph, found one that cannot be normalised ({words})"
        raise CompileError(path, problem, next_step="check it with onnx.checker, or export it again") from error


def _run_passes(model: ir.Model) -> None:
    _choose_cached_branch(model.graph)
    Sequential(common.InlinePass(), common.TopologicalSortPass())(model)
    fold_constants(
        model,
        onnx_shape_inference=False,
        input_size_limit=FOLD_BYTES,
        output_size_limit=FOLD_BYTES,
        should_fold=_may_fold,
    )
    _drop_identities(model.graph)
    Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )(model)


def _choose_cached_branch(graph: ir.Graph) -> None:
    """Of a merged decoder, the branch that takes a cache: with an empty one it does what the other does."""
    chosen = next((value for value in graph.inputs if value.name == BRANCH_INPUT), None)
    if chosen is None:
        return
    graph.inputs.remove(chosen)
    chosen.const_value = ir.tensor([True], name=BRANCH_INPUT)
    graph.register_initializer(chosen)


def _drop_identities(graph: ir.Graph) -> None:
    """Weights that layers share come behind an Identity each."""
    for node in list(graph):
        if node.op_type == "Identity" and node.inputs[0] is not None and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            graph.remove(node, safe=True)


def _may_fold(node: ir.Node) -> bool | None:
    """Refuse what reads external data or changes a weight; leave the rest to the pass."""
    return False if any(_is_weight(value) for value in node.inputs if value is not None) else None


def _is_weight(value: ir.Value) -> bool:
    tensor = value.const_value
    matrix = tensor is not None and len(tensor.shape) > 1 and tensor.size > 1
    return isinstance(tensor, ir.ExternalTensor) or matrix
