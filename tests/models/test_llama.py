"""Does the network have the parameters and frequencies of its Hugging Face twin?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hjgc.models.checkpoint import tensor_shapes
from hjgc.models.config import inverse_frequencies, read_config
from hjgc.models.llama import Decoder
from tests.models.checkpoints import VARIANTS, write_checkpoint

CASES: dict[str, dict[str, Any]] = {name: {"variant": name} for name in VARIANTS} | {
    "all_biases": {"variant": "mha", "attention_bias": True, "mlp_bias": True},
    "wide_heads": {"variant": "gqa", "head_dim": 32},
    "mistral": {"variant": "gqa", "model_type": "mistral", "architectures": ["MistralForCausalLM"]},
}


@pytest.fixture(params=CASES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, **CASES[request.param])


def test_it_has_the_parameters_that_transformers_gives_the_same_config(folder: Path) -> None:
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        network = Decoder(read_config(folder), torch.float16)
    wanted = {name: tuple(parameter.shape) for name, parameter in twin.named_parameters()}
    assert {name: tuple(parameter.shape) for name, parameter in network.named_parameters()} == wanted
    assert tensor_shapes(read_config(folder)) == wanted


def test_its_rotary_frequencies_are_those_of_transformers(folder: Path) -> None:
    twin = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    torch.testing.assert_close(
        torch.from_numpy(inverse_frequencies(read_config(folder))), twin.model.rotary_emb.inv_freq, rtol=1e-7, atol=0
    )
