"""Which rules lower ONNX nodes? Importing this module registers all of them."""

from hjgc.compiler.function import arithmetic, products, reductions, shapes

__all__ = ["arithmetic", "products", "reductions", "shapes"]
