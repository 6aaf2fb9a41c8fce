"""How does the bench talk to a peer in another process?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import hjgc
from hjgc.plan_format.errors import HjgcError
from hjgc.tools.peers.peer import Answer, Calls, Series

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
GOODBYE_SECONDS = 10


class PeerProcess:
    """A peer, started with `threads` threads for every library that asks the environment. `process_seconds` is the time
    from the start of its process to the answer that it is ready, of which `startup` is the part spent on the model.

    Raises HjgcError with the peer's own words where it fails."""

    def __init__(self, name: str, spec: Mapping[str, Any], threads: int) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hjgc.tools.peers.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment(threads),
            text=True,
            encoding="utf-8",
        )
        try:
            ready = self._ask(dict(spec))
        except BaseException:
            self.close()
            raise
        self.process_seconds = time.perf_counter() - began
        self.startup: dict[str, float] = ready["startup"]
        self.versions: dict[str, str] = ready["versions"]

    def answer(self, ids: Sequence[int], tokens: int) -> Answer:
        reply = self._ask({"verb": "answer", "ids": list(ids), "tokens": tokens})
        return Answer(reply["first"], tuple(reply["further"]), tuple(reply["tokens"]), reply["replayed"], reply["ran"])

    def series(self, ids: Sequence[int], tokens: int, repeat: int, warm_up: int, rest: float = 0.0) -> Series:
        """As many answers to one prompt, one after the other, `rest` seconds between them, without a word."""
        counts = {"tokens": tokens, "repeat": repeat, "warm_up": warm_up, "rest": rest}
        reply = self._ask({"verb": "series", "ids": list(ids), **counts})
        answers = tuple(tuple(tokens) for tokens in reply["answers"])
        return Series(tuple(reply["firsts"]), tuple(reply["furthers"]), answers, reply["replayed"], reply["ran"])

    def calls(self, count: int, warm_up: int = 0) -> Calls:
        """As many calls of a function, one after the other, without a word."""
        reply = self._ask({"verb": "calls", "count": count, "warm_up": warm_up})
        return Calls(tuple(reply["seconds"]), reply["replayed"], reply["ran"])

    def outputs(self, path: Path) -> None:
        """Have what a function gives written into a file, as arrays by name."""
        self._ask({"verb": "outputs", "path": str(path)})

    def watch(self, watching: Mapping[str, Any]) -> dict[str, Any]:
        """What requests notice while graphs are built: see `capturing.py`. For plans only."""
        return self._ask({"verb": "watch", "watching": dict(watching)})

    def launches(self) -> list[dict[str, Any]]:
        """What each kind of launch takes: see `launches.py`. For plans on a GPU only."""
        return self._ask({"verb": "launches"})["launches"]

    def settle(self, timeout: float) -> bool:
        return self._ask({"verb": "settle", "timeout": timeout})["settled"]

    def details(self) -> dict[str, Any]:
        return self._ask({"verb": "details"})

    def close(self) -> None:
        """End the process, kindly first. May be called twice."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._log.close()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # it may be in the middle of a long answer that nobody wants any more
            self._process.kill()
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise HjgcError(f"{self.name}: expected an answer, found its process ended: {self._last_words()}")
        reply = json.loads(line)
        if "error" in reply:
            raise HjgcError(f"{self.name}: {reply['error']}")
        return reply

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f"exit code {code}{', ' + lines[-1] if lines else ''}"


def environment(threads: int) -> dict[str, str]:
    """Ours, with the number of threads, this hjgc to import, and no word to the network."""
    source = str(Path(hjgc.__path__[0]).parent)
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    return (
        os.environ
        | dict.fromkeys(THREAD_VARIABLES, str(threads))
        | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    )
