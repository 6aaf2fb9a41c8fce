"""What must the plan say about the model that its graph does not: name, tokenizer, end tokens, default sampling?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hjgc.plan_format.errors import InputError
from hjgc.plan_format.fingerprint import file_digest
from hjgc.plan_format.structs import Model, TextFile

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def read_model_info(folder: Path, root: Path, *, name: str, architecture: str, vocab: int, context: int, layers: int) -> Model:
    """Read `tokenizer.json` and `generation_config.json` in `folder`, where they exist. The tokenizer is named relative
    to `root`, and left out if it lies elsewhere. Raises InputError for files that do not parse."""
    generation = _read_json(folder / "generation_config.json")
    config = _read_json(folder / "config.json")
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    bos = generation.get("bos_token_id", config.get("bos_token_id"))
    return Model(
        name=name,
        architecture=architecture,
        vocab_size=vocab,
        context=context,
        layers=layers,
        eos_ids=_ids(eos, folder),
        bos_id=bos if isinstance(bos, int) else None,
        tokenizer=_tokenizer(folder / "tokenizer.json", root),
        generation=_sampling(generation),
    )


def _sampling(generation: dict[str, Any]) -> dict[str, float]:
    """The defaults that the model's makers chose; greedy unless they said to sample."""
    if not generation.get("do_sample", False):
        return {}
    found = {name: generation[name] for name in SAMPLING if isinstance(generation.get(name), int | float)}
    return {name: float(value) for name, value in found.items()}


def _ids(value: Any, folder: Path) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and token >= 0 for token in ids):
        raise InputError(folder / "generation_config.json", f"expected token ids, found {value!r}", field="eos_token_id")
    return tuple(ids)


def _tokenizer(path: Path, root: Path) -> TextFile | None:
    real_root = root.resolve()
    if not path.is_file() or not path.parent.resolve().is_relative_to(real_root):
        return None
    name = (path.parent.resolve() / path.name).relative_to(real_root).as_posix()
    return TextFile(name, file_digest(path))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, f"expected a JSON file, found {error}") from None
    if not isinstance(found, dict):
        raise InputError(path, f"expected a JSON object, found {type(found).__name__}")
    return found
