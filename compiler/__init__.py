"""ONNX in, plan out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hjgc.compiler.pipeline import CompileResult, compile_model

__all__ = ["CompileResult", "compile_model"]


def __getattr__(name: str) -> Any:
    """Loaded when first used: the pipeline imports the ONNX libraries."""
    if name in __all__:
        from hjgc.compiler import pipeline

        return getattr(pipeline, name)
    raise AttributeError(name)
