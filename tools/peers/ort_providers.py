"""Which of ONNX Runtime's providers compute a peer's model, and what is missing where CUDA's cannot?"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections import Counter
from typing import Any

from hjgc.plan_format.errors import InputError
from hjgc.runtime.backends.cuda_provider import NAME as CUDA
from hjgc.runtime.backends.cuda_provider import ORDINAL as DEVICE
from hjgc.runtime.island_sessions import PROVIDER as CPU

PROVIDERS: dict[str, tuple[Any, ...]] = {"cpu": (CPU,), "cuda": ((CUDA, {"device_id": DEVICE}), CPU)}
"""The first that can takes a node. What the CUDA provider's other options begin at is what makes it fast here: memory
that grows by powers of two, so seldom while caches grow, TF32 for products of float32, copies on the stream that
computes. Its graphs (`enable_cuda_graph`) need shapes that stay, and a past grows; the rest is about convolutions."""
PACKAGE = "pip uninstall onnxruntime, then pip install 'hjgc[ort-gpu]'"
LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]', and see what `hjgc doctor` says of the GPU"


def load_cuda() -> Any:
    """The module onnxruntime with a CUDA provider in it, and CUDA's libraries loaded as far as it finds them. Raises
    InputError for one that is not there, or is for CPUs only."""
    try:
        ort: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        problem = f"expected a module with {CUDA}, found none ({error})"
        raise InputError("onnxruntime", problem, next_step="pip install 'hjgc[ort-gpu]'") from None
    if hasattr(ort, "preload_dlls"):  # from 1.21 on; prints what it does not find
        with contextlib.redirect_stdout(sys.stderr):
            ort.preload_dlls()
    found = ort.get_available_providers()
    if CUDA not in found:
        raise InputError("onnxruntime", f"expected {CUDA}, found {', '.join(found)}", next_step=PACKAGE)
    return ort


def check_on_cuda(session: Any) -> None:
    """Raises InputError for a session that computes on the CPU alone: what ONNX Runtime makes, with a warning, where
    it cannot load a provider that it has."""
    found = session.get_providers()
    if CUDA not in found:
        problem = f"expected a session with {CUDA}, found {', '.join(found)}: CUDA's libraries or a GPU are missing"
        raise InputError("onnxruntime", problem, next_step=LIBRARIES)


def provider_details(session: Any) -> dict[str, Any]:
    """The session's providers and, where ONNX Runtime tells (from 1.24 on) and `cuda_provider.ASSIGNMENT` was set, how
    many nodes of the graph each of them runs."""
    found: dict[str, Any] = {"providers": list(session.get_providers())}
    if hasattr(session, "get_provider_graph_assignment_info"):
        nodes = Counter[str]()
        for part in session.get_provider_graph_assignment_info():
            nodes[part.ep_name] += len(part.get_nodes())
        found["nodes"] = dict(nodes.most_common())
    return found
