"""How does another process build variants: one that must not import a compiler, or that wants several at once?

A child process: `python -m hjgc.compiler.build_worker` reads one request a line (JSON: template, axes, target) and
answers each with a length (4 bytes, little-endian) and that many bytes of msgpack, until its input ends. What it builds
is cached by digest, as always.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType
from typing import IO

import msgspec

from hjgc.compiler.build import Built, build
from hjgc.compiler.kernels.declaration import AxisValue
from hjgc.plan_format.errors import CompileError


class Request(msgspec.Struct, frozen=True):
    """Which variant is wanted."""

    template: str
    axes: dict[str, bool | int | str]
    target: str


class Refusal(msgspec.Struct, frozen=True):
    """The parts of the CompileError that the build raised."""

    place: str
    problem: str
    field: str | None
    next_step: str | None


class Answer(msgspec.Struct, frozen=True):
    """One of the two."""

    built: Built | None = None
    refusal: Refusal | None = None


class BuildWorker:
    """A child process that builds one variant at a time. Close it, or use it as a context manager."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment())

    def build(self, template: str, axes: dict[str, AxisValue], target: str) -> Built:
        """The variant, from the cache if it was built before. Raises CompileError."""
        answer = self._ask(Request(template, axes, target))
        if answer.refusal is not None:
            refusal = answer.refusal
            raise CompileError(refusal.place, refusal.problem, field=refusal.field, next_step=refusal.next_step)
        assert answer.built is not None
        return answer.built

    def _ask(self, request: Request) -> Answer:
        source, sink = self._process.stdout, self._process.stdin
        assert source is not None and sink is not None
        try:
            sink.write(msgspec.json.encode(request) + b"\n")
            sink.flush()
            return msgspec.msgpack.decode(_read(source), type=Answer)
        except (OSError, EOFError):
            code = self._process.wait()
            problem = f"the process that builds it ended with status {code}"
            raise CompileError(f"template {request.template} for {request.target}", problem) from None

    def close(self) -> None:
        """Ends the process at once, whatever it is doing."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> BuildWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _environment() -> dict[str, str]:
    """Ours, with the folders that we import from."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _read(source: IO[bytes]) -> bytes:
    size = int.from_bytes(_exactly(source, 4), "little")
    return _exactly(source, size)


def _exactly(source: IO[bytes], size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise EOFError
    return data


def answer(line: bytes) -> Answer:
    """Build what one request asks for."""
    request = msgspec.json.decode(line, type=Request)
    try:
        return Answer(built=build(request.template, request.axes, request.target))
    except CompileError as error:
        return Answer(refusal=Refusal(error.place, error.problem, error.field, error.next_step))


def main() -> None:
    # Compilers print what they like: their output goes where errors go, ours to the pipe alone.
    with os.fdopen(os.dup(1), "wb") as pipe:
        os.dup2(2, 1)
        for line in sys.stdin.buffer:
            data = msgspec.msgpack.encode(answer(line))
            pipe.write(len(data).to_bytes(4, "little") + data)
            pipe.flush()


if __name__ == "__main__":
    main()
