"""Does `locate_tensors` find the bytes of every tensor, and refuse files in which they cannot be?"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hjgc.models.checkpoint import TensorLocation, locate_tensors
from hjgc.models.config import read_config
from hjgc.plan_format.errors import InputError
from tests.models.checkpoints import VARIANTS, write_checkpoint

SRC = Path(__file__).parents[2] / "src"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TENSOR = "model.layers.1.mlp.up_proj.weight"  # F32 [160, 64], 40960 bytes


def locate(folder: Path) -> dict[str, TensorLocation]:
    return locate_tensors(folder, read_config(folder))


def bytes_of(tensor: TensorLocation) -> bytes:
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        return file.read(tensor.length)


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def change_entry(folder: Path, **fields: Any) -> None:
    header, data = split(folder / SINGLE)
    header[TENSOR] |= fields
    join(folder / SINGLE, json.dumps(header).encode(), data)


def replace_header(folder: Path, header: bytes) -> None:
    join(folder / SINGLE, header, split(folder / SINGLE)[1])


def change_index(folder: Path, **fields: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | fields))


def change_shard_of_tensor(folder: Path, shard: object) -> None:
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    change_index(folder, weight_map=weight_map | {TENSOR: shard})


def refusal(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        locate(folder)
    return caught.value


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_bytes_found_are_those_that_the_safetensors_library_reads(
    tmp_path: Path, variant: str, dtype: str, sharded: bool
) -> None:
    folder = write_checkpoint(tmp_path, variant=variant, dtype=dtype, seed=3, sharded=sharded)
    located = locate(folder)
    for file in folder.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            found = located.pop(name)
            assert (found.file, found.shape) == (file, tuple(tensor.shape))
            assert found.dtype == {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
            assert bytes_of(found) == tensor.view(torch.uint8).numpy().tobytes()
    assert located == {}


def test_tensors_that_the_network_does_not_need_are_passed_over(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, variant="gqa")
    before = set(locate(folder))
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8, dtype=torch.int64)
    save_file(tensors, folder / SINGLE)
    assert set(locate(folder)) == before


def test_a_head_stored_beside_tied_embeddings_is_passed_over(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, variant="gqa", tie_word_embeddings=False)
    write_checkpoint(tmp_path / "tied", variant="tied")
    (folder / "config.json").write_bytes((tmp_path / "tied" / "config.json").read_bytes())
    assert "lm_head.weight" not in locate(folder)


def test_one_checkpoint_may_mix_dtypes(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, variant="gqa", dtype="bfloat16")
    tensors = load_file(folder / SINGLE)
    save_file({name: t.float() if "norm" in name else t for name, t in tensors.items()}, folder / SINGLE)
    located = locate(folder)
    assert {located["model.norm.weight"].dtype, located["lm_head.weight"].dtype} == {"F32", "BF16"}


def test_a_folder_without_safetensors_is_refused_and_told_how_to_make_them(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    error = refusal(folder)
    assert "found only pytorch_model.bin" in error.problem
    assert "save_pretrained" in str(error.next_step)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, sharded=True)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    error = refusal(folder)
    assert error.place == str(shard)
    assert "found none" in error.problem


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / SINGLE).unlink()
    (folder / SINGLE).mkdir()
    assert "expected a readable file" in refusal(folder).problem


@pytest.mark.parametrize("kept", [0, 7, 8, 9, 100])
def test_a_file_cut_short_in_its_header_is_refused(tmp_path: Path, kept: int) -> None:
    folder = write_checkpoint(tmp_path)
    os.truncate(folder / SINGLE, kept)
    error = refusal(folder)
    assert error.place == str(folder / SINGLE)
    assert "download it again" in str(error.next_step)


def test_a_file_cut_short_in_its_data_is_refused_at_the_tensor_that_suffers(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    last = max(locate(folder).items(), key=lambda item: item[1].offset)
    os.truncate(folder / SINGLE, last[1].offset + last[1].length - 1)
    error = refusal(folder)
    assert error.field == last[0]
    assert "download it again" in str(error.next_step)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001])
def test_a_header_length_beyond_the_file_is_refused_without_allocating_it(tmp_path: Path, length: int) -> None:
    folder = write_checkpoint(tmp_path)
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(struct.pack("<Q", length) + content[8:])
    assert f"found one of {length} bytes" in refusal(folder).problem


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "expected a JSON header"),
        (b"not json", "expected a JSON header"),
        (b"\xff\xff", "expected a JSON header"),
        (b"[" * 200_000, "expected a JSON header"),
        (b"[]", "expected a JSON object as header, found list"),
        (b"{}", "expected the tensor that config.json calls for, found none"),
    ],
)
def test_a_header_that_is_no_table_of_tensors_is_refused(tmp_path: Path, header: bytes, words: str) -> None:
    folder = write_checkpoint(tmp_path)
    replace_header(folder, header)
    assert words in refusal(folder).problem


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dtype": "F64"}, "expected F32 or F16 or BF16, found 'F64'"),
        ({"dtype": "I8"}, "found 'I8'"),
        ({"dtype": ["F32"]}, "found ['F32']"),
        ({"dtype": "F16"}, "expected 20480 bytes for F16 [160, 64], found 40960"),
        ({"shape": [64, 160]}, "expected shape [160, 64] as config.json says, found [64, 160]"),
        ({"shape": [160, 64, 1]}, "found [160, 64, 1]"),
        ({"shape": "160x64"}, "found '160x64'"),
        ({"data_offsets": None}, "expected data_offsets [begin, end], found None"),
        ({"data_offsets": [0]}, "expected data_offsets"),
        ({"data_offsets": ["0", "40960"]}, "expected data_offsets"),
        ({"data_offsets": [0.0, 40960.0]}, "expected data_offsets"),
        ({"data_offsets": [-40960, 0]}, "expected data_offsets"),
        ({"data_offsets": [40960, 0]}, "expected data_offsets"),
        ({"data_offsets": [0, 40956]}, "expected 40960 bytes for F32 [160, 64], found 40956"),
        ({"data_offsets": [10**12, 10**12 + 40960]}, "expected bytes 1000000000000 to 1000000040960"),
    ],
)
def test_an_entry_that_cannot_be_is_named(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    folder = write_checkpoint(tmp_path)
    change_entry(folder, **fields)
    error = refusal(folder)
    assert (error.place, error.field) == (str(folder / SINGLE), TENSOR)
    assert words in error.problem


def test_an_entry_that_is_no_object_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    header, _ = split(folder / SINGLE)
    replace_header(folder, json.dumps(header | {TENSOR: 7}).encode())
    assert "expected a JSON object, found int" in refusal(folder).problem


def test_weights_of_another_model_are_refused_by_their_shape(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, vocab_size=200)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 199}))
    error = refusal(folder)
    assert error.field == "model.embed_tokens.weight"
    assert "expected shape [199, 64] as config.json says, found [200, 64]" in error.problem


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / INDEX).write_text("{"), "expected a JSON object with a weight_map"),
        (lambda folder: (folder / INDEX).write_text("[]"), "expected a JSON object with a weight_map"),
        (lambda folder: (folder / INDEX).write_text("[" * 200_000), "expected a JSON object with a weight_map"),
        (lambda folder: (folder / INDEX).write_text("{}"), "expected a JSON object with a weight_map"),
        (lambda folder: change_index(folder, weight_map=[]), "expected an object of tensor and file names, found list"),
        (lambda folder: change_index(folder, weight_map={}), "expected the tensor that config.json calls for"),
        (lambda folder: change_shard_of_tensor(folder, 7), "a .safetensors file in the same folder, found 7"),
        (lambda folder: change_shard_of_tensor(folder, ""), "a .safetensors file in the same folder, found ''"),
        (lambda folder: change_shard_of_tensor(folder, ".."), "a .safetensors file in the same folder, found '..'"),
        (lambda folder: change_shard_of_tensor(folder, "../x.safetensors"), "found '../x.safetensors'"),
        (lambda folder: change_shard_of_tensor(folder, "/etc/passwd"), "found '/etc/passwd'"),
        (lambda folder: change_shard_of_tensor(folder, "a\0b"), "a .safetensors file in the same folder"),
    ],
)
def test_an_index_that_cannot_be_is_refused(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    folder = write_checkpoint(tmp_path, sharded=True)
    damage(folder)
    error = refusal(folder)
    assert error.place == str(folder / INDEX)
    assert words in error.problem


def test_an_index_that_sends_a_tensor_to_the_wrong_shard_is_refused_at_that_shard(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, sharded=True)
    right = locate(folder)[TENSOR].file
    wrong = next(file for file in sorted(folder.glob("*.safetensors")) if file != right)
    change_shard_of_tensor(folder, wrong.name)
    error = refusal(folder)
    assert (error.place, error.field) == (str(wrong), TENSOR)


def test_locating_tensors_needs_neither_torch_nor_safetensors(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    program = f"""
import sys
from pathlib import Path
from hjgc.models.checkpoint import locate_tensors
from hjgc.models.config import read_config
folder = Path({str(folder)!r})
assert locate_tensors(folder, read_config(folder))
print({{"torch", "safetensors", "onnx", "onnx_ir", "transformers"}} & set(sys.modules))
"""
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (run.stdout.strip(), run.stderr) == ("set()", "")
