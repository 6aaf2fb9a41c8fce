"""What do the later stages work on: the network as steps over tensors, once per phase?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.sizes import Expression, SizeDeclaration
from hjgc.plan_format.structs import Attribute, Constant, DTypes, HostValue, Island, State, Weight


@dataclass(frozen=True)
class Tensor:
    """A value: an activation by name, or an entry of one of the network's tables by index."""

    name: str
    space: Literal["buffer", "weight", "constant", "state", "parameters", "value"]
    dtype: DType
    shape: tuple[Expression, ...]
    index: int = 0
    base: str = ""
    """Of a view, the buffer that it is one of."""


@dataclass(frozen=True)
class Step:
    """One op applied to tensors by role. `nodes` are the ONNX nodes it came from, `values` the ONNX value that each
    written role holds, `callback` the function of the caller's that an op of the host's calls, `island` the number of
    the sub-model that an island runs, `causes` why it cannot be captured: a code each, and the chain that led to it."""

    name: str
    op: str
    operands: dict[str, Tensor]
    attributes: dict[str, Attribute] = field(default_factory=dict[str, Attribute])
    nodes: tuple[str, ...] = ()
    values: dict[str, str] = field(default_factory=dict[str, str])
    callback: str = ""
    island: int = 0
    causes: tuple[tuple[ReasonCode, tuple[str, ...]], ...] = ()


def scalar(step: Step, name: str) -> float:
    """An attribute that is one number."""
    value = step.attributes[name]
    assert isinstance(value, int | float), "a number"
    return float(value)


@dataclass(frozen=True)
class End:
    """A named operand or result of a function: the buffer or value that it is, its ONNX type, its shape as declared."""

    name: str
    tensor: Tensor
    type: str
    shape: tuple[Expression | None, ...] | None


@dataclass(frozen=True)
class Program:
    """The network for one phase: its sizes, its steps in order, the row counts that graphs are built for. A function
    has arguments and results, and values that only the host holds."""

    phase: str
    sizes: tuple[SizeDeclaration, ...]
    buckets: tuple[int, ...]
    steps: tuple[Step, ...]
    function: bool = False
    arguments: tuple[End, ...] = ()
    results: tuple[End, ...] = ()
    values: tuple[HostValue, ...] = ()


@dataclass(frozen=True)
class Network:
    """What all phases share, and the phases."""

    dtypes: DTypes
    weights: tuple[Weight, ...]
    constants: tuple[Constant, ...]
    constant_bytes: bytes
    states: tuple[State, ...]
    programs: tuple[Program, ...]
    vocab_size: int
    layers: int
    islands: tuple[Island, ...] = ()
    island_bytes: bytes = b""
    notes: tuple[str, ...] = ()
    """What the user should know."""
