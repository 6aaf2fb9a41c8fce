"""Which ONNX graph does the exporter make of a network that has shapes and dtypes but no weights?"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Generator

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hjgc.models.config import DecoderConfig, inverse_frequencies
from hjgc.models.llama import Decoder

OPSET = 23  # the first with Attention, RotaryEmbedding and RMSNormalization
IR_VERSION = 11  # the one that came with it
NEW, PAST = "sequence_length", "past_sequence_length"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def trace(config: DecoderConfig, dtypes: dict[str, str]) -> ir.Model:
    """The graph as the exporter writes it. Initializers named in `dtypes` (tensor name to F32, F16 or BF16) have no
    value, so that nothing done to the graph afterwards can read or fold them."""
    layers = [f"{layer}.{part}" for layer in range(config.layers) for part in ("key", "value")]
    frequencies = torch.from_numpy(inverse_frequencies(config))  # real numbers in a fake world: they become a constant
    with _quietly(), FakeTensorMode(allow_non_fake_inputs=True):
        program = torch.onnx.export(
            _decoder(config, dtypes, frequencies),
            _example(config),
            dynamo=True,
            optimize=False,  # it would look at the fake weights
            verbose=False,
            opset_version=OPSET,
            input_names=["input_ids", "position_ids", *(f"past_key_values.{name}" for name in layers)],
            output_names=["logits", *(f"present.{name}" for name in layers)],
            dynamic_shapes=({1: NEW}, {1: NEW}, tuple({2: PAST} for _ in layers)),
        )
    assert program is not None
    for name in dtypes:
        program.model.graph.initializers[name].const_value = None
    program.model.ir_version = IR_VERSION
    return program.model


def _decoder(config: DecoderConfig, dtypes: dict[str, str], frequencies: Tensor) -> nn.Module:
    decoder = Decoder(config, torch.float32).eval()
    for name, parameter in decoder.named_parameters():
        parameter.data = torch.empty(parameter.shape, dtype=DTYPES[dtypes[name]])
    decoder.inverse_frequencies = frequencies
    return decoder


def _example(config: DecoderConfig) -> tuple[Tensor, ...]:
    """Sizes that differ from each other and from 0 and 1, which the exporter would take for fixed. A tensor each: the
    exporter takes one object given twice for one input."""
    new, past = 7, 5
    cache = (1, config.kv_heads, past, config.head_dim)
    tokens = (torch.zeros(1, new, dtype=torch.int64) for _ in range(2))
    return (*tokens, *(torch.zeros(cache) for _ in range(2 * config.layers)))


@contextlib.contextmanager
def _quietly() -> Generator[None]:
    """The exporter warns of packages that we do not use and of its own deprecations."""
    logger = logging.getLogger("torch.onnx._internal.exporter")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
