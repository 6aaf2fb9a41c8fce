"""How is a variant built by another process, so that building disturbs no request and imports nothing here?"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import msgspec

from hjgc.plan_format.building import LENGTH_BYTES, WORKER, BuildAnswer, BuildRequest

MAX_ANSWER_BYTES = 256 << 20


class ChildLost(Exception):
    """The process ended, or did not answer in time: a sentence."""


class Child(Protocol):
    """A process that builds one variant at a time."""

    def ask(self, request: BuildRequest, seconds: float) -> BuildAnswer:
        """Its answer. Raises ChildLost; the process is of no more use then."""
        ...

    def kill(self) -> None:
        """End it, from any thread: whoever waits for its answer gets ChildLost."""
        ...

    def close(self) -> None:
        """End it if it has not ended, and forget it. Nobody waits for its answer."""
        ...


class BuildChild:
    """`python -m hjgc.compiler.build_worker`, started now. It imports from the folders that we import from, and never
    from the one it is started in (`-P`), where somebody else's modules may lie beside a plan."""

    def __init__(self, command: Sequence[str] = (sys.executable, "-P", "-m", WORKER)) -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        # Compilers are killed in the middle of their files, which would stay behind in a folder that is not ours.
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        path = os.pathsep.join(part for part in sys.path if part)
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path, "TMPDIR": self._folder.name},
            process_group=0,  # Ctrl-C is for whoever serves; `kill` ends the compilers that it started too
        )

    def ask(self, request: BuildRequest, seconds: float) -> BuildAnswer:
        until = time.monotonic() + seconds
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            size = int.from_bytes(self._read(LENGTH_BYTES, until), "little")
            if size > MAX_ANSWER_BYTES:
                raise ChildLost(f"the process that builds kernels answered with {size} bytes")
            return msgspec.msgpack.decode(self._read(size, until), type=BuildAnswer)
        except OSError:
            raise self._ended() from None
        except msgspec.MsgspecError as error:
            raise ChildLost(f"the process that builds kernels answered what is no answer: {error}") from None

    def _read(self, size: int, until: float) -> bytes:
        assert self._process.stdout is not None
        number, data = self._process.stdout.fileno(), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(number, selectors.EVENT_READ)
            while len(data) < size:
                left = until - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise ChildLost("the process that builds kernels did not answer in time")
                piece = os.read(number, min(size - len(data), 1 << 20))
                if not piece:
                    raise self._ended()
                data += piece
        return bytes(data)

    def _ended(self) -> ChildLost:
        """With the last line that it wrote, which says what was missing."""
        code = self._process.wait()
        self._words.seek(0)
        lines = self._words.read().decode("utf-8", "replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        return ChildLost(f"the process that builds kernels ended with status {code}{said}")

    def kill(self) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):  # it has ended this very moment
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self._process.communicate()
        self._words.close()
        self._folder.cleanup()
