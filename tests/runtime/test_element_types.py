"""Are element types converted to the bit as torch does it?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hjgc.runtime.backends.element_types import BLOCK, FLOATS, convert, from_float32, to_float32

TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CORNERS = [0.0, -0.0, 1.0, 65504.0, 65519.9, 65520.0, 1e9, 3.4028235e38, 1e-8, 5.96e-8, 1e-40, np.inf, -np.inf, np.nan]
HALFWAY = [1.00390625, 1.01171875, 1.00048828125, 1.00146484375]
"""Between two bfloat16, between two float16."""


def samples(dtype: str) -> np.ndarray:
    """Every 16-bit pattern; of float32 the corners, numbers halfway and a few blocks of random bits. As bytes."""
    if dtype != "float32":
        return np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    bits = np.random.default_rng(5).integers(0, 1 << 32, 3 * BLOCK + 7, np.uint32)
    return np.concatenate([np.array(CORNERS + HALFWAY, np.float32), bits.view(np.float32)]).view(np.uint8)


@pytest.mark.parametrize("of", FLOATS)
@pytest.mark.parametrize("to", FLOATS)
def test_every_conversion_is_torchs_to_the_bit(of: str, to: str) -> None:
    source = samples(of)
    given = torch.from_numpy(source.copy()).view(TORCH[of])
    expected = given.to(TORCH[to])
    target = np.full(expected.nbytes, 0xEE, np.uint8)
    convert(source, of, target, to)
    found = torch.from_numpy(target).view(TORCH[to])
    numbers = ~torch.isnan(expected)
    bits = torch.int32 if to == "float32" else torch.int16
    assert torch.equal(found.view(bits)[numbers], expected.view(bits)[numbers])
    assert torch.isnan(found[~numbers]).all()  # which of the many is nobody's business


def test_logits_go_to_the_nearest_bfloat16_and_back() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.5, 0.0], np.float32)  # the second and third lie halfway
    back = to_float32(from_float32(values, "bfloat16"), "bfloat16")
    assert back.tolist() == [1.0, 1.0, 1.015625, -3.5, 0.0]
