"""Which rules lower ONNX nodes? Importing this module registers all of them."""

from hjgc.compiler.function import (
    arithmetic,
    attention,
    choosing,
    einsum,
    filling,
    losses,
    norms,
    padding,
    products,
    quantising,
    reductions,
    resizing,
    scattering,
    shapes,
    windows,
)

__all__ = [
    "arithmetic",
    "attention",
    "choosing",
    "einsum",
    "filling",
    "losses",
    "norms",
    "padding",
    "products",
    "quantising",
    "reductions",
    "resizing",
    "scattering",
    "shapes",
    "windows",
]
