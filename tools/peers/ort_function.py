"""How fast is ONNX Runtime on the ONNX file that a function was compiled from?

Its inputs are handed over once, before anything is timed, and its outputs stay where it puts them: nothing is copied,
where a `Function` copies both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hjgc.tools.machine import peak_memory
from hjgc.tools.peers.peer import Counts, Startup


class OrtFunctionPeer:
    """ONNX Runtime's CPU provider, all graph optimisations on, called with the arrays of the file `inputs`. Implements
    `peer.CallPeer`."""

    def __init__(self, *, model: str, inputs: str, threads: int) -> None:
        self.startup = Startup()
        with self.startup.part("import"):
            import onnxruntime

            from hjgc.tools.calling import read_arrays
            from hjgc.tools.functions.ort import OrtFunction
        with self.startup.part("weights"):  # the graph is read, optimised, and given its weights in one call
            self._model = OrtFunction(Path(model), threads)
        self._call = self._model.bound(read_arrays(Path(inputs)))
        self.versions = {"onnxruntime": str(onnxruntime.__version__)}

    def call(self) -> object:
        return self._call()

    def outputs(self) -> dict[str, Any]:
        return self._model.read(self._call())

    def counts(self) -> Counts:
        return Counts()

    def settle(self, timeout: float) -> bool:
        del timeout
        return True

    def details(self) -> dict[str, Any]:
        return {"host_bytes": peak_memory()}

    def close(self) -> None:
        del self._call, self._model
