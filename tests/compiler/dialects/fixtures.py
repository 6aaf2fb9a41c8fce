"""How does a fixture become an ONNX file with weights?

A fixture is a graph without the numbers of its weights (`tests/exporters/make_fixtures.py`): the doc string of such an
initializer says how to draw them, and which it is in order of use. So two graphs of one network get the same weights if
their exporters fuse and turn them alike.
"""

from __future__ import annotations

import gzip
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.name.removesuffix(".onnx.gz") for path in FOLDER.glob("*.onnx.gz")))


def write_fixture(name: str, folder: Path) -> Path:
    """`<name>.onnx`, and beside it `<name>.weights` with what its exporter kept in another file."""
    model = onnx.ModelProto.FromString(gzip.decompress((FOLDER / f"{name}.onnx.gz").read_bytes()))
    weights = bytearray()
    for tensor in filter(lambda tensor: tensor.doc_string, model.graph.initializer):
        data = _drawn(tensor)
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {"location": f"{name}.weights", "offset": len(weights), "length": len(data)}
            tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in place.items())
            weights += data
        else:
            tensor.raw_data = data
        tensor.doc_string = ""
    path = folder / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    if weights:
        path.with_suffix(".weights").write_bytes(weights)
    return path


def _drawn(tensor: TensorProto) -> bytes:
    """Bytes by a recipe: `place normal mean deviation`, `place uniform low high` or `place bytes`."""
    place, kind, *numbers = tensor.doc_string.split()
    random, shape = np.random.default_rng(int(place)), tuple(tensor.dims)
    if kind == "bytes":
        return random.bytes(_byte_count(tensor))
    draw = {"normal": random.normal, "uniform": random.uniform}[kind]
    drawn: NDArray[Any] = draw(*map(float, numbers), size=shape)
    return drawn.astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).tobytes()


def _byte_count(tensor: TensorProto) -> int:
    count = prod(tensor.dims)
    return (count + 1) // 2 if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4) else count
