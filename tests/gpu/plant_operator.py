"""What does an operator that no launch computes cost in each layer of a decoder? A model to measure it with.

    plant_operator.py MODEL.onnx OUTPUT.onnx [DOMAIN::]OPERATOR     MODEL by `hjgc export`, OUTPUT beside it

Puts the operator on what attention gives in every layer, before it is added to what went around it. `Elu` is none of a
LLaMA's, and becomes launches; `com.microsoft::QuickGelu` is none of ours, and stays with ONNX Runtime.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx_ir as ir


def plant(model: ir.Model, op_type: str) -> int:
    """How many layers have it now."""
    graph = model.graph
    domain, _, name = op_type.rpartition("::")
    products = [node for node in graph if node.name is not None and node.name.endswith("self_attn.o_proj/MatMul")]
    for layer, node in enumerate(products):
        source = node.outputs[0]
        made = ir.node(name, [source], name=f"planted/{name}.{layer}", domain=domain)
        result = made.outputs[0]
        result.name, result.shape, result.type = f"planted.{layer}", source.shape, source.type
        for user, place in tuple(source.uses()):
            if user is not made:
                user.replace_input_with(place, result)
        graph.insert_after(node, made)
    if domain:
        graph.opset_imports[domain] = 1
    return len(products)


def main(model: str, output: str, op_type: str) -> None:
    loaded = ir.load(model)
    layers = plant(loaded, op_type)
    ir.save(loaded, output)
    print(f"{output}: {op_type} in {layers} layers, {Path(output).stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
