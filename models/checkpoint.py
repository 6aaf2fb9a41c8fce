"""Where does each weight of a Hugging Face checkpoint lie on disk, without reading a single weight?"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hjgc.models.config import DecoderConfig
from hjgc.plan_format.errors import InputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_NAME = re.compile(r"[^/\\\0]+\.safetensors")
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
LONGEST_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class TensorLocation:
    """Bytes [offset, offset + length) of `file` hold a row-major tensor. dtype is F32, F16 or BF16."""

    file: Path
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Header:
    """The JSON of one safetensors file, and where its data starts and how many bytes of it there are."""

    path: Path
    entries: dict[str, Any]
    data_offset: int
    data_length: int


def locate_tensors(folder: Path, config: DecoderConfig) -> dict[str, TensorLocation]:
    """Find every tensor that `config`'s network needs, in the order of `tensor_shapes`; others are ignored.
    Reads headers only. Raises InputError for a file or tensor that is missing, cut short or of the wrong kind."""
    files = _files_of_tensors(folder)
    headers: dict[Path, _Header] = {}
    tensors: dict[str, TensorLocation] = {}
    for name, shape in tensor_shapes(config).items():
        path = files if isinstance(files, Path) else _shard_of(name, files, folder)
        if path not in headers:
            headers[path] = _read_header(path)
        tensors[name] = _locate(name, shape, headers[path])
    return tensors


def tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that the network needs, as Hugging Face checkpoints spell them."""
    embedding = (config.vocab_size, config.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": embedding}
    for layer in range(config.layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _layer_shapes(config).items()}
    shapes["model.norm.weight"] = (config.hidden_size,)
    return shapes if config.tied_embeddings else shapes | {"lm_head.weight": embedding}


def _layer_shapes(c: DecoderConfig) -> dict[str, tuple[int, ...]]:
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    products = {
        "self_attn.q_proj": (q, c.hidden_size, c.qkv_bias),
        "self_attn.k_proj": (kv, c.hidden_size, c.qkv_bias),
        "self_attn.v_proj": (kv, c.hidden_size, c.qkv_bias),
        "self_attn.o_proj": (c.hidden_size, q, c.output_bias),
        "mlp.gate_proj": (c.intermediate_size, c.hidden_size, c.mlp_bias),
        "mlp.up_proj": (c.intermediate_size, c.hidden_size, c.mlp_bias),
        "mlp.down_proj": (c.hidden_size, c.intermediate_size, c.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns, bias) in products.items():
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)
    for name in ("input_layernorm", "post_attention_layernorm"):
        shapes[f"{name}.weight"] = (c.hidden_size,)
    for name in ("self_attn.q_norm", "self_attn.k_norm") if c.qk_norm else ():
        shapes[f"{name}.weight"] = (c.head_dim,)
    return shapes


def _files_of_tensors(folder: Path) -> Path | dict[str, Any]:
    """The one file, or the index's map from tensor name to shard name."""
    if (folder / SINGLE).exists():
        return folder / SINGLE
    if (folder / INDEX).exists():
        return _read_index(folder / INDEX)
    other = next(iter(sorted(folder.glob("*.bin")) + sorted(folder.glob("*.gguf"))), None)
    found = "none" if other is None else f"only {other.name}"
    next_step = "load the model with transformers and save it with `save_pretrained` to get safetensors"
    raise InputError(folder, f"expected {SINGLE} or {INDEX}, found {found}", next_step=next_step)


def _read_index(path: Path) -> dict[str, Any]:
    try:
        weight_map = _parse_json(path.read_bytes())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(path, f"expected a JSON object with a weight_map, found {_short(error)}") from None
    if not isinstance(weight_map, dict):
        found = type(weight_map).__name__
        raise InputError(path, f"expected an object of tensor and file names, found {found}", field="weight_map")
    return cast(dict[str, Any], weight_map)


def _shard_of(name: str, weight_map: dict[str, Any], folder: Path) -> Path:
    field = f"weight_map[{name!r}]"
    if name not in weight_map:
        raise InputError(folder / INDEX, "expected the tensor that config.json calls for, found none", field=field)
    shard = weight_map[name]
    if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
        problem = f"expected the name of a .safetensors file in the same folder, found {shard!r}"
        raise InputError(folder / INDEX, problem, field=field)
    return folder / shard


def _read_header(path: Path) -> _Header:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = _header_length(file.read(8), size, path)
            text = file.read(length)
    except FileNotFoundError:
        raise InputError(path, "expected a weights file, found none", next_step="download the missing file") from None
    except OSError as error:
        raise InputError(path, f"expected a readable file, found {error.strerror}") from None
    return _Header(path, _parse_header(text, path), 8 + length, size - 8 - length)


def _header_length(prefix: bytes, size: int, path: Path) -> int:
    if len(prefix) < 8:
        raise InputError(path, f"expected a safetensors file, found {size} bytes", next_step="download it again")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(LONGEST_HEADER, size - 8):
        problem = f"expected a safetensors header within {size} bytes, found one of {length} bytes"
        raise InputError(path, problem, next_step="the file is cut short or no safetensors: download it again")
    return length


def _parse_header(text: bytes, path: Path) -> dict[str, Any]:
    try:
        header = _parse_json(text)
    except ValueError as error:
        raise InputError(path, f"expected a JSON header, found {_short(error)}") from None
    if not isinstance(header, dict):
        raise InputError(path, f"expected a JSON object as header, found {type(header).__name__}")
    return cast(dict[str, Any], header)


def _parse_json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None


def _locate(name: str, shape: tuple[int, ...], header: _Header) -> TensorLocation:
    path, entry = header.path, header.entries.get(name)
    if entry is None:
        raise InputError(path, "expected the tensor that config.json calls for, found none", field=name)
    if not isinstance(entry, dict):
        raise InputError(path, f"expected a JSON object, found {type(entry).__name__}", field=name)
    fields = cast(dict[str, Any], entry)
    dtype = _dtype(name, fields.get("dtype"), path)
    if fields.get("shape") != list(shape):
        problem = f"expected shape {list(shape)} as config.json says, found {fields.get('shape')!r}"
        raise InputError(path, problem, field=name, next_step="take config.json and weights from the same model")
    begin, end = _data_range(name, fields.get("data_offsets"), header)
    length = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != length:
        raise InputError(path, f"expected {length} bytes for {dtype} {list(shape)}, found {end - begin}", field=name)
    return TensorLocation(path, header.data_offset + begin, length, dtype, shape)


def _dtype(name: str, dtype: object, path: Path) -> str:
    if isinstance(dtype, str) and dtype in ITEM_BYTES:
        return dtype
    next_step = "take the checkpoint that is not quantised"
    raise InputError(path, f"expected {' or '.join(ITEM_BYTES)}, found {dtype!r}", field=name, next_step=next_step)


def _data_range(name: str, offsets: object, header: _Header) -> tuple[int, int]:
    pair = cast(list[object], offsets) if isinstance(offsets, list) else []
    begin, end = pair if len(pair) == 2 else (None, None)
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise InputError(header.path, f"expected data_offsets [begin, end], found {offsets!r}", field=name)
    if end > header.data_length:
        problem = f"expected bytes {begin} to {end} of the data, found only {header.data_length} bytes"
        raise InputError(header.path, problem, field=name, next_step="the file is cut short: download it again")
    return begin, end


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
