"""Which tokenizer belongs to the plan, and can each of its tokens be embedded?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from hjgc.plan_format.errors import InputError
from hjgc.plan_format.structs import TextFile

MAX_BYTES = 128 << 20
"""The largest known tokenizer.json has 35 MB; parsing takes several times the file in memory."""


def find_tokenizer(folder: Path, root: Path, vocab: int) -> TextFile | None:
    """`tokenizer.json` in `folder`, named relative to `root`; None if there is none, or if it lies elsewhere.

    Raises InputError for one that does not parse or has tokens that an embedding of `vocab` rows has no row for."""
    path, real_root = folder / "tokenizer.json", root.resolve()
    if not path.is_file() or not folder.resolve().is_relative_to(real_root):
        return None
    data = _read(path)
    highest = highest_token(data, path)
    if highest >= vocab:
        problem = f"expected token ids below {vocab}, the rows of the embedding, found {highest}"
        raise InputError(path, problem, field="vocabulary", next_step="take the tokenizer that came with these weights")
    name = (folder.resolve() / path.name).relative_to(real_root).as_posix()
    return TextFile(name, hashlib.sha256(data).hexdigest())


def highest_token(data: bytes, path: Path) -> int:
    """The highest token id in the bytes of a tokenizer.json, -1 if it has none. Raises InputError."""
    try:
        raw: Any = json.loads(data)
        ids = [*_vocabulary(raw["model"]["vocab"]), *(token["id"] for token in raw.get("added_tokens") or [])]
        return max((int(token) for token in ids), default=-1)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        problem = f"expected a tokenizer with model.vocab, found {type(error).__name__} {error}"
        raise InputError(path, problem, next_step="save it again with the tokenizers library") from None


def _vocabulary(vocab: object) -> list[Any]:
    """Ids by token (BPE, WordPiece, WordLevel), or a list in order of id (Unigram)."""
    if isinstance(vocab, dict):
        return list(cast("dict[str, Any]", vocab).values())
    return list(range(len(cast("list[Any]", vocab))))


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(path, f"expected a tokenizer of at most {MAX_BYTES} bytes, found {size}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror or error}", next_step="make it readable") from None
