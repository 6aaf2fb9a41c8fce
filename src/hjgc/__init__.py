"""hjgc compiles a decoder language model into a plan, and serves the plan. Which names are for everyone?

    plan = hjgc.compile("model.onnx", "model.hjg")
    with hjgc.LLM("model.hjg") as llm:
        print(llm.generate("Once upon a time", hjgc.SamplingParams(temperature=0.8)).text)

Each name is loaded when it is first used, so that `import hjgc` costs nothing and serving never loads the compiler.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hjgc._version import __version__

if TYPE_CHECKING:
    from hjgc.compiler import compile_model as compile
    from hjgc.plan_format.errors import CompileError, HjgcError, InputError, PlanError, RunError
    from hjgc.runtime.answer import Stream
    from hjgc.runtime.completion import Completion, Piece, Timings
    from hjgc.runtime.errors import Cancelled, ContextFull, DeadlineExceeded, SessionClosed
    from hjgc.runtime.function import Function
    from hjgc.runtime.llm import LLM
    from hjgc.runtime.opening import load
    from hjgc.runtime.sampling_params import SamplingParams
    from hjgc.runtime.session import Session

__all__ = [
    "LLM",
    "Cancelled",
    "CompileError",
    "Completion",
    "ContextFull",
    "DeadlineExceeded",
    "Function",
    "HjgcError",
    "InputError",
    "Piece",
    "PlanError",
    "RunError",
    "SamplingParams",
    "Session",
    "SessionClosed",
    "Stream",
    "Timings",
    "__version__",
    "compile",
    "load",
]

_HOMES = {
    "LLM": ("hjgc.runtime.llm", "LLM"),
    "Cancelled": ("hjgc.runtime.errors", "Cancelled"),
    "CompileError": ("hjgc.plan_format.errors", "CompileError"),
    "Completion": ("hjgc.runtime.completion", "Completion"),
    "ContextFull": ("hjgc.runtime.errors", "ContextFull"),
    "DeadlineExceeded": ("hjgc.runtime.errors", "DeadlineExceeded"),
    "Function": ("hjgc.runtime.function", "Function"),
    "HjgcError": ("hjgc.plan_format.errors", "HjgcError"),
    "InputError": ("hjgc.plan_format.errors", "InputError"),
    "Piece": ("hjgc.runtime.completion", "Piece"),
    "PlanError": ("hjgc.plan_format.errors", "PlanError"),
    "RunError": ("hjgc.plan_format.errors", "RunError"),
    "SamplingParams": ("hjgc.runtime.sampling_params", "SamplingParams"),
    "Session": ("hjgc.runtime.session", "Session"),
    "SessionClosed": ("hjgc.runtime.errors", "SessionClosed"),
    "Stream": ("hjgc.runtime.answer", "Stream"),
    "Timings": ("hjgc.runtime.completion", "Timings"),
    "compile": ("hjgc.compiler", "compile_model"),
    "load": ("hjgc.runtime.opening", "load"),
}


def __getattr__(name: str) -> Any:
    """Load a public name, once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hjgc' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    globals()[name] = value = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
