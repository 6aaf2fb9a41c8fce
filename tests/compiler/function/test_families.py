"""Do towers and encoders of other families compile for a GPU without an island, and give ONNX Runtime's numbers?"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers as hf

from tests.compiler.function.for_gpus import checked

pytestmark = pytest.mark.usefixtures("nothing_built")
SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128
}  # fmt: skip
PATCHES: dict[str, Any] = {"image_size": 32, "patch_size": 8}
IMAGE = {"pixel_values": (1, 3, 32, 32)}
TOLERANCE = 1e-4


def whisper() -> torch.nn.Module:
    config = hf.WhisperConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128, max_source_positions=50,
        num_mel_bins=16, decoder_layers=1, decoder_attention_heads=4, vocab_size=100, pad_token_id=0,
    )  # fmt: skip
    return hf.WhisperModel(config).get_encoder()


def wav2vec() -> torch.nn.Module:
    config = hf.Wav2Vec2Config(
        **SMALL, conv_dim=(32, 32), conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    return hf.Wav2Vec2Model(config)


def swin() -> torch.nn.Module:
    shape: dict[str, Any] = {"depths": [2, 2], "num_heads": [2, 4], "embed_dim": 16, "window_size": 4}
    return hf.SwinModel(hf.SwinConfig(image_size=32, patch_size=4, **shape))


FAMILIES: dict[str, tuple[Callable[[], torch.nn.Module], dict[str, tuple[int, ...]], int]] = {
    # what makes it, its inputs, and how many launches of attention it has
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(**SMALL, **PATCHES)), IMAGE, 2),
    "clip": (lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**SMALL, **PATCHES)), IMAGE, 2),
    "siglip": (lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**SMALL, **PATCHES)), IMAGE, 2),
    "swin": (swin, IMAGE, 4),
    "convnext": (
        lambda: hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2)), IMAGE, 0,
    ),
    "resnet": (
        lambda: hf.ResNetModel(hf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])), IMAGE, 0,
    ),
    "whisper": (whisper, {"input_features": (1, 16, 100)}, 2),
    "wav2vec": (wav2vec, {"input_values": (1, 800)}, 2),
}  # fmt: skip


class First(torch.nn.Module):
    """The first of a model's results."""

    def __init__(self, model: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True)))[0]


FORMS = [(name, exporter) for name in FAMILIES for exporter in ("dynamo", "TorchScript")]
FORMS.remove(("swin", "TorchScript"))  # it computes its pads from the image


@pytest.mark.parametrize(("family", "exporter"), FORMS)
def test_it_is_static_from_end_to_end(family: str, exporter: str, tmp_path: Path) -> None:
    make, shapes, attentions = FAMILIES[family]
    torch.manual_seed(0)
    model = First(make().eval(), list(shapes)).eval()
    inputs = {name: torch.randn(shape) for name, shape in shapes.items()}
    dynamo = exporter == "dynamo"
    options: dict[str, Any] = {"input_names": list(shapes), "dynamo": dynamo, "opset_version": 18 if dynamo else 17}
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        torch.onnx.export(model, tuple(inputs.values()), str(tmp_path / "exported.onnx"), **options)
    exported = onnx.load(tmp_path / "exported.onnx")
    feed = {name: inputs[name].numpy() for name in (value.name for value in exported.graph.input)}
    ops = checked(exported, feed, tmp_path, tolerance=TOLERANCE)
    assert "island" not in ops and ops.count("attention_rows") == attentions
