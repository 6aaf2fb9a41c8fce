"""How fast is transformers without compilation?"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from hjgc.plan_format.errors import InputError
from hjgc.tools.peers.peer import Answer, Counts, Startup, timed_answer


class EagerPeer:
    """`AutoModelForCausalLM` on the CPU, as it comes: its own choice of attention, a dynamic cache. The loop is written
    out, because `generate()` costs more, and asks for the last row of logits only. Implements `peer.Peer`."""

    def __init__(self, *, folder: str, dtype: str, threads: int) -> None:
        self.startup = Startup()
        with self.startup.part("import"):
            import torch
            import transformers
        torch.set_num_threads(threads)
        self._torch = torch
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        with self.startup.part("weights"):
            self._model: Any = self._load(transformers, folder, dtype)
        names = inspect.signature(self._model.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"  # transformers before 5.24
        self.versions = {"transformers": str(transformers.__version__), "torch": str(torch.__version__)}

    def _load(self, transformers: Any, folder: str, dtype: str) -> Any:
        try:
            kind = transformers.AutoModelForCausalLM
            return kind.from_pretrained(folder, dtype=getattr(self._torch, dtype), local_files_only=True).eval()
        except Exception as error:  # whatever transformers and its libraries raise
            said = " ".join(str(error).split())
            raise InputError(folder, f"expected a checkpoint that transformers loads, it says: {said}") from None

    def answer(self, ids: Sequence[int], tokens: int) -> Answer:
        self._cache = None
        with self._torch.inference_mode():
            return timed_answer(lambda: self._step(ids), lambda token: self._step([token]), tokens)

    def _step(self, ids: Sequence[int]) -> int:
        rows = self._torch.tensor([ids])
        out = self._model(rows, use_cache=True, logits_to_keep=1, **{self._cache_name: self._cache})
        self._cache = getattr(out, self._cache_name)
        return int(out.logits[0, -1].argmax())

    def counts(self) -> Counts:
        return Counts()

    def settle(self, timeout: float) -> bool:
        del timeout
        return True

    def details(self) -> dict[str, Any]:
        return {"attention": str(self._model.config._attn_implementation)}

    def close(self) -> None:
        self._cache = self._model = None
