"""What must the plan say about the model that its graph does not: name, tokenizer, end tokens, default sampling?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from hjgc.compiler.tokenizer import find_tokenizer
from hjgc.plan_format.errors import InputError
from hjgc.plan_format.structs import Model

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
MAX_BYTES = 16 << 20


def read_model_info(
    folder: Path | None, root: Path, *, name: str, architecture: str, vocab: int, context: int, layers: int
) -> Model:
    """Read `tokenizer.json`, `generation_config.json` and `config.json` in `folder`, where they exist. The tokenizer is
    named relative to `root`, and left out if it lies elsewhere. Raises InputError for files that do not parse, or that
    name tokens which the model does not have."""
    generation = {} if folder is None else _read_json(folder / "generation_config.json")
    config = {} if folder is None else _read_json(folder / "config.json")
    chosen = folder or root  # without a folder nothing was read, so no error names it
    eos = _ids("eos_token_id", generation, config, vocab, chosen)
    bos = _ids("bos_token_id", generation, config, vocab, chosen)
    return Model(
        name=name,
        architecture=architecture,
        vocab_size=vocab,
        context=context,
        layers=layers,
        eos_ids=eos,
        bos_id=bos[0] if bos else None,
        tokenizer=None if folder is None else find_tokenizer(folder, root, vocab),
        generation=_sampling(generation, chosen),
    )


def _sampling(generation: dict[str, Any], folder: Path) -> dict[str, float]:
    """The defaults that the model's makers chose; greedy unless they said to sample."""
    if not generation.get("do_sample", False):
        return {}
    found = {name: generation[name] for name in SAMPLING if generation.get(name) is not None}
    for name, value in found.items():
        if not _is_number(value):
            raise InputError(folder / "generation_config.json", f"expected a number, found {value!r}", field=name)
    return {"temperature": 1.0} | {name: float(value) for name, value in found.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e30 < value < 1e30


def _ids(name: str, generation: dict[str, Any], config: dict[str, Any], vocab: int, folder: Path) -> tuple[int, ...]:
    """The ids under this name, one or a list; generation_config.json goes before config.json."""
    source = "config.json" if generation.get(name) is None else "generation_config.json"
    value = config.get(name) if generation.get(name) is None else generation[name]
    ids = cast("list[Any]", [] if value is None else value if isinstance(value, list) else [value])
    if not all(type(token) is int and 0 <= token < vocab for token in ids):
        problem = f"expected token ids below {vocab}, the rows of the embedding, found {value!r}"
        raise InputError(folder / source, problem, field=name)
    return tuple(ids)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(path, f"expected at most {MAX_BYTES} bytes, found {size}")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path, f"expected a JSON file, found {error}") from None
    if not isinstance(found, dict):
        raise InputError(path, f"expected a JSON object, found {type(found).__name__}")
    return cast("dict[str, Any]", found)
