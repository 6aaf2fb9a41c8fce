"""How does another process build variants: one that must not import a compiler, or that wants several at once?

A child process: `python -m hjgc.compiler.build_worker` answers requests, as `plan_format.building` spells both, until
its input ends. What it builds is cached by digest, as always.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from types import TracebackType
from typing import IO

import msgspec

from hjgc.compiler.build import Built, build
from hjgc.compiler.kernels import template_digest, template_names
from hjgc.compiler.kernels.declaration import AxisValue
from hjgc.plan_format.building import (
    LENGTH_BYTES,
    BuildAnswer,
    BuildRefusal,
    BuildRequest,
    BuiltVariant,
    Fault,
)
from hjgc.plan_format.errors import CompileError


class BuildWorker:
    """A child process that builds one variant at a time, and imports nothing from the folder it is started in. Close
    it, or use it as a context manager."""

    def __init__(self) -> None:
        # Compilers are killed in the middle of their files, which would stay behind in a folder that is not ours.
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process, self._closed = self._start(), False

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment() | {"TMPDIR": self._folder.name},
            process_group=0,  # Ctrl-C is for us, who end it and what it started
        )

    def build(self, template: str, axes: dict[str, AxisValue], target: str) -> BuiltVariant:
        """The variant, from the cache if it was built before. Raises CompileError."""
        answer = self._ask(BuildRequest(template, axes, target))
        if answer.refusal is not None:
            refusal = answer.refusal
            raise CompileError(refusal.place, refusal.problem, field=refusal.field, next_step=refusal.next_step)
        assert answer.built is not None
        return answer.built

    def _ask(self, request: BuildRequest) -> BuildAnswer:
        if self._process.poll() is not None and not self._closed:  # a compiler may end its process for one variant
            self._process.communicate()
            self._process = self._start()
        source, sink = self._process.stdout, self._process.stdin
        assert source is not None and sink is not None
        try:
            sink.write(msgspec.json.encode(request) + b"\n")
            sink.flush()
            return msgspec.msgpack.decode(_read(source), type=BuildAnswer)
        except (OSError, EOFError):
            code = self._process.wait()
            problem = f"the process that builds it ended with status {code}"
            raise CompileError(f"template {request.template} for {request.target}", problem) from None

    def close(self) -> None:
        """Ends the process, and the compilers that it started, at once, whatever they are doing."""
        self._closed = True
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._folder.cleanup()

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
    size = int.from_bytes(_exactly(source, LENGTH_BYTES), "little")
    return _exactly(source, size)


def _exactly(source: IO[bytes], size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise EOFError
    return data


def answer(line: bytes) -> BuildAnswer:
    """Build what one request asks for."""
    request = msgspec.json.decode(line, type=BuildRequest)
    refusal = _wrong_text(request)
    if refusal is not None:
        return BuildAnswer(refusal=refusal)
    try:
        return BuildAnswer(built_variant(build(request.template, request.axes, request.target)))
    except CompileError as error:
        fault: Fault = "compile" if find_spec("triton") else "extra"
        return BuildAnswer(refusal=BuildRefusal(error.place, error.problem, error.field, error.next_step, fault))


def built_variant(built: Built) -> BuiltVariant:
    """What is said of it outside this process."""
    return BuiltVariant(
        entry=built.entry,
        parameters=built.parameters,
        threads=built.threads,
        shared_bytes=built.shared_bytes,
        pdl=built.pdl,
        registers=built.registers,
        code=built.cubin,
    )


def _wrong_text(request: BuildRequest) -> BuildRefusal | None:
    """Why what is installed is not the template that was asked for."""
    place, name = f"template {request.template}", request.template
    if request.digest is None:
        return None
    if name not in template_names():
        return BuildRefusal(place, "it is not installed with this hjgc", fault="template")
    found = template_digest(name)
    if found == request.digest:
        return None
    problem = f"expected the text with the digest {request.digest}, found {found} installed with this hjgc"
    return BuildRefusal(place, problem, next_step="compile the model again with this hjgc", fault="template")


def main() -> None:
    # Compilers print what they like: their output goes where errors go, ours to the pipe alone.
    with os.fdopen(os.dup(1), "wb") as pipe:
        os.dup2(2, 1)
        for line in sys.stdin.buffer:
            data = msgspec.msgpack.encode(answer(line))
            pipe.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)
            pipe.flush()


if __name__ == "__main__":
    main()
