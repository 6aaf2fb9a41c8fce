"""Which modules hold rules that lower ONNX nodes?"""

from __future__ import annotations

from functools import cache
from importlib import import_module

MODULES = (
    "arithmetic", "attention", "choosing", "einsum", "filling", "losses", "microsoft", "norms", "padding", "products",
    "quantising", "reductions", "resizing", "scattering", "shapes", "windows",
)  # fmt: skip


@cache
def register_all() -> None:
    """Importing a module adds its rules to `lowering.RULES`."""
    for name in MODULES:
        import_module(f"hjgc.compiler.function.{name}")
