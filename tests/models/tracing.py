"""How do tests of what surrounds the trace avoid tracing the same network twice?"""

from __future__ import annotations

import functools

import onnx_ir as ir

from hjgc.models.config import DecoderConfig
from hjgc.models.trace import trace


def trace_once(config: DecoderConfig, dtypes: dict[str, str]) -> ir.Model:
    """What `trace` gives for these arguments, traced the first time and cloned ever after."""
    return _traced(config, tuple(dtypes.items())).clone()


@functools.cache
def _traced(config: DecoderConfig, dtypes: tuple[tuple[str, str], ...]) -> ir.Model:
    return trace(config, dict(dtypes))
