"""How does the exporter's graph become one that a person can read?"""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer import fold_constants

SCOPES = "pkg.torch.onnx.name_scopes"
NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"  # what the exporter writes for the sizes of inputs
FOLD_AT_MOST = 1024  # elements; only shapes and other small integers are constant here


def tidy(model: ir.Model) -> None:
    """Fold constants and shape arithmetic, drop what nothing uses, name things after the modules they came from.
    Initializers without a value (weights) stay as they are, and so do the Cast and Transpose between them and their
    product."""
    fold_constants(model, onnx_shape_inference=True, input_size_limit=FOLD_AT_MOST, output_size_limit=FOLD_AT_MOST)
    lift = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    unused = common.RemoveUnusedNodesPass()
    Sequential(unused, lift)(model)
    _merge_constants(model.graph)
    Sequential(common.CommonSubexpressionEliminationPass(), unused)(model)
    _name_after_modules(model.graph)
    _spell_sizes_alike(model.graph)
    _drop_metadata(model)


def _merge_constants(graph: ir.Graph) -> None:
    """Equal integers become one constant, named after its value: `int64[1,-1,64]`, `int64(0)`."""
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.INT64:
            continue
        name = _literal(tensor)
        if name in graph.initializers:
            value.replace_all_uses_with(graph.initializers[name])
            graph.initializers.pop(str(value.name))
        else:
            value.name = tensor.name = name


def _literal(tensor: ir.TensorProtocol) -> str:
    value = tensor.numpy().tolist()
    return f"int64{value}".replace(" ", "") if isinstance(value, list) else f"int64({value})"


def _name_after_modules(graph: ir.Graph) -> None:
    """`model.layers.0.mlp.up_proj/MatMul`; a second one in the same module ends in `_1`."""
    taken: Counter[str] = Counter()
    kept = {id(value) for value in graph.outputs}
    for node in graph:
        plain = "/".join(filter(None, (_module(node), node.op_type)))
        node.name = f"{plain}_{taken[plain]}" if taken[plain] else plain
        taken[plain] += 1
        for value in node.outputs:
            if id(value) not in kept:
                value.name = node.name


def _module(node: ir.Node) -> str:
    """The innermost module that made the node; the exporter lists the modules from outside in, then the operation."""
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    return scopes[-2] if len(scopes) > 1 and scopes[-2] != NO_MODULE else ""


def _spell_sizes_alike(graph: ir.Graph) -> None:
    """The exporter writes a sum of sizes now in one order, now in the other."""
    for value in [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape([_sorted_sum(dim) for dim in value.shape])


def _sorted_sum(dim: int | ir.SymbolicDim) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return None if dim.value is None else " + ".join(sorted(dim.value.split(" + ")))


def _drop_metadata(model: ir.Model) -> None:
    """The exporter's notes (stack traces, file paths) would be most of the file."""
    common.ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    for value in [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]:
        value.metadata_props.clear()
