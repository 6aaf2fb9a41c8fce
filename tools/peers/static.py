"""How fast is transformers with a static cache, eager or compiled, on a GPU?"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from hjgc.plan_format.errors import InputError
from hjgc.tools.peers.peer import Answer, Counts, Startup, timed_answer

CHUNK = 512
"""Longer prompts are read in parts where nothing is compiled: one pass of thousands of rows needs gigabytes."""
WARM_UPS = 4
"""Compile, run once to warm up, record a graph, replay it."""


class StaticPeer:
    """`AutoModelForCausalLM` with a StaticCache of at most `capacity` rows and a loop of its own: the last token stays
    on the device, and only the last row of logits is asked for. `compiled`: torch.compile(mode="reduce-overhead") of a
    step, for one row and for each of `lengths`, all of it done at the start. Implements `peer.Peer`."""

    def __init__(
        self,
        *,
        folder: str,
        dtype: str,
        threads: int,
        device: str,
        capacity: int,
        lengths: Sequence[int] = (),
        compiled: bool = False,
    ) -> None:
        self.startup = Startup()
        with self.startup.part("import"):
            import torch
            import transformers
        torch.set_num_threads(threads)
        self._torch, self._device, self._capacity = torch, device, capacity
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        with self.startup.part("weights"):
            self._model: Any = self._load(transformers, folder, dtype)
        self.versions = {"transformers": str(transformers.__version__), "torch": str(torch.__version__)}
        self._names = set(inspect.signature(self._model.forward).parameters)
        self._make_cache = transformers.StaticCache
        self._cache: Any = None
        self._cache_rows, self._fixed = 0, compiled
        self._places = torch.arange(capacity, device=device)
        self._token = torch.zeros((1, 1), dtype=torch.long, device=device)
        self._compiled_rows: frozenset[int] = frozenset()
        if compiled:
            with self.startup.part("warm-up"):
                self._compile(lengths)

    def _load(self, transformers: Any, folder: str, dtype: str) -> Any:
        try:
            kind = transformers.AutoModelForCausalLM
            model = kind.from_pretrained(folder, dtype=getattr(self._torch, dtype), local_files_only=True)
            return model.to(self._device).eval()
        except Exception as error:  # whatever transformers and its libraries raise
            said = " ".join(str(error).split())
            raise InputError(folder, f"expected a checkpoint that transformers loads, it says: {said}") from None

    def _compile(self, lengths: Sequence[int]) -> None:
        """The cache is made by a step that is not compiled: its memory must be known to stay where it is, or torch
        skips its graphs."""
        self.answer([0] * min(8, self._capacity - 2), 2)
        config: Any = self._torch._dynamo.config
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        setattr(config, limit, 64)
        self._fast = self._torch.compile(self._next, mode="reduce-overhead", dynamic=False)
        self._compiled_rows = frozenset((1, *lengths))
        for length in lengths:
            for _ in range(WARM_UPS):
                self.answer([0] * length, WARM_UPS)

    def answer(self, ids: Sequence[int], tokens: int) -> Answer:
        self._empty_cache(len(ids) + tokens)
        with self._torch.no_grad():
            return timed_answer(lambda: self._prompt(ids), lambda _: self._step(self._token), tokens)

    def _empty_cache(self, rows: int) -> None:
        """Room for so many rows, with little to spare: attention looks at all of it. Done when it returns."""
        wanted = self._capacity if self._fixed else min(self._capacity, max(256, 1 << (rows - 1).bit_length()))
        if wanted == self._cache_rows:
            self._cache.reset()
        else:
            self._cache = self._make_cache(config=self._model.config, max_cache_len=wanted)
            self._cache_rows = wanted
        self._position = 0
        int(self._token)

    def _prompt(self, ids: Sequence[int]) -> int:
        if len(ids) in self._compiled_rows:
            return self._step(self._rows(ids))
        token = -1
        for start in range(0, len(ids), CHUNK):
            token = self._step(self._rows(ids[start : start + CHUNK]))
        return token

    def _rows(self, ids: Sequence[int]) -> Any:
        return self._torch.tensor([ids], device=self._device)

    def _step(self, rows: Any) -> int:
        count = rows.shape[1]
        places = self._places[self._position : self._position + count]
        self._position += count
        if count in self._compiled_rows:
            self._torch.compiler.cudagraph_mark_step_begin()
            self._token.copy_(self._fast(rows, places))
        else:
            self._token.copy_(self._next(rows, places))
        return int(self._token)

    def _next(self, rows: Any, places: Any) -> Any:
        """The best next token [1, 1]. What transformers calls its arguments differs between its versions."""
        cache = "past_key_values" if "past_key_values" in self._names else "cache"
        given = {cache: self._cache, "position_ids": places[None], "cache_position": places}
        known = {name: value for name, value in given.items() if name in self._names}
        out = self._model(rows, use_cache=True, logits_to_keep=1, **known)
        return out.logits[:, -1:].argmax(-1)

    def counts(self) -> Counts:
        return Counts()

    def settle(self, timeout: float) -> bool:
        del timeout
        return True

    def details(self) -> dict[str, Any]:
        return {
            "attention": str(self._model.config._attn_implementation),
            "cache_rows": self._cache_rows,
            "compiled_lengths": sorted(self._compiled_rows),
        }

    def close(self) -> None:
        self._cache = self._model = None
