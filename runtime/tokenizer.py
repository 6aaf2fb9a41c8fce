"""How does the text of a prompt become the token ids that the model was trained on, and ids text again?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hjgc.plan_format.errors import PlanError, RunError
from hjgc.plan_format.fingerprint import file_under_root
from hjgc.plan_format.structs import Model, TextFile

if TYPE_CHECKING:
    import tokenizers

COMPILE_AGAIN = "compile the model again, or bring back the file it was compiled with"


class Tokenizer:
    """The tokenizer that a plan names. May be used from any thread."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.no_truncation()  # a file may carry settings that would cut prompts without a word
        inner.no_padding()
        self._inner = inner

    @property
    def size(self) -> int:
        """How many ids there are, added tokens included."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, with what the file itself puts around it (say, a token that begins every text)."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RunError(
                f"prompt: expected Unicode text, found half a surrogate pair at character {error.start}; mend the text"
            ) from None
        return self._inner.encode(text, add_special_tokens=True).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens, and ids that it does not know, read as nothing."""
        return self._inner.decode(list(ids), skip_special_tokens=True)

    def token(self, token_id: int) -> str | None:
        """How the tokenizer writes one id, for messages."""
        return self._inner.id_to_token(token_id)


def load_tokenizer(model: Model, root: Path) -> Tokenizer | None:
    """The tokenizer that the plan names, from the weights root; None if it names none. Raises PlanError if the file is
    missing, is not the one the plan was compiled with, or is no tokenizer."""
    if model.tokenizer is None:
        return None
    path = file_under_root(model.tokenizer.name, root, root / model.tokenizer.name, "$.model.tokenizer")
    _check_digest(path, model.tokenizer)
    from tokenizers import Tokenizer as Inner

    try:
        return Tokenizer(Inner.from_file(str(path)))
    except Exception as error:  # the library raises bare Exception
        raise PlanError(path, f"expected a tokenizer, found {error}", next_step=COMPILE_AGAIN) from None


def _check_digest(path: Path, expected: TextFile) -> None:
    """Read in blocks: a file of any size costs no memory before it is known to be the right one."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PlanError(path, f"cannot be read: {error.strerror or error}") from None
    if found != expected.sha256:
        problem = f"expected sha256 {expected.sha256}, found {found}"
        raise PlanError(path, problem, next_step=f"the tokenizer has changed: {COMPILE_AGAIN}")
