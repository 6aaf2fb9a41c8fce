"""How do tests get a small valid plan without a compiler?

`small_plan()` is a decoder of two layers written down by hand: phases `prefill` (1 to 16 tokens, in buckets) and
`decode`, schedules `default`, `logits_processor` and (prefill) `prompt_only`. `weights_file(plan)` are bytes for the
one file of weights that it names. With a `function` each phase calls it on the rows between the two layers, with
`blocks` there are so many of three launches behind the layers, which share weights: a plan as long as the format has
room for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from hjgc.plan_format.dtypes import ITEM_BYTES, DType
from hjgc.plan_format.hazards import schedule_edges
from hjgc.plan_format.ledger import make_ledger
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.reasons import Reason, ReasonCode
from hjgc.plan_format.sizes import Expression, Size, SizeDeclaration, evaluate
from hjgc.plan_format.structs import (
    FORMAT_VERSION,
    Attribute,
    Buffer,
    CaptureKey,
    Constant,
    DTypes,
    DynamicSegment,
    HostCall,
    Launch,
    Model,
    Operand,
    Phase,
    Plan,
    Producer,
    ReferenceCall,
    Schedule,
    Segment,
    Source,
    Space,
    State,
    StaticSegment,
    Weight,
    WeightFile,
    parameter_block,
)
from hjgc.plan_format.verify import verify

VOCABULARY, HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, INNER, LAYERS = 50, 8, 2, 1, 4, 12, 2
CONTEXT = 48
BUCKETS = (2, 4, 8, 16)
EPSILON = 1e-5
FREQUENCIES = np.array([1.0, 0.01], dtype="<f4")
CONSTANTS = FREQUENCIES.tobytes()
"""The constants section that goes with every small plan."""
LAYER_WEIGHTS: dict[str, tuple[int, ...]] = {
    "attention_norm": (HIDDEN,),
    "qkv": ((HEADS + 2 * KV_HEADS) * HEAD_SIZE, HIDDEN),
    "o": (HIDDEN, HEADS * HEAD_SIZE),
    "mlp_norm": (HIDDEN,),
    "gate_up": (2 * INNER, HIDDEN),
    "down": (HIDDEN, INNER),
}

Place = tuple[Space, int]


def small_plan(
    *,
    buckets: Sequence[int] = BUCKETS,
    context: int = CONTEXT,
    layers: int = LAYERS,
    blocks: int = 0,
    function: str = "",
) -> Plan:
    """A plan for the `cpu` target that `plan_format.verify` accepts; `layers` of float32 attention and gated MLP."""
    weights, states = _weights(layers), _states(layers, context)
    prefill = _PhaseBuilder("prefill", weights, states, Size("tokens"), buckets, context, blocks, function)
    decode = _PhaseBuilder("decode", weights, states, 1, (1,), context, blocks, function)
    phases = (prefill.phase(), decode.phase())
    constants = (Constant("inverse_frequencies", "float32", FREQUENCIES.shape, 0, FREQUENCIES.nbytes),)
    arena = max(buffer.offset + buffer.bytes for phase in phases for buffer in phase.buffers)
    data = _random_bytes(weights)
    plan = Plan(
        format=FORMAT_VERSION,
        features=("token_history", "parameter_block"),
        producer=Producer("test", "by hand", "0" * 64, 20, {}),
        model=Model("small", "LlamaForCausalLM", VOCABULARY, context, layers, eos_ids=(2,), bos_id=1),
        targets=("cpu",),
        dtypes=DTypes("float32", "float32", "float32", "float32", "float32"),
        files=(WeightFile("weights.bin", len(data), _digest(data[:65536]), _digest(data)),),
        weights=weights,
        constants=constants,
        states=states,
        parameters=parameter_block(),
        arena_bytes=arena,
        phases=phases,
        templates=(),
        variants=(),
        ledger=make_ledger(weights, arena, states, constants, parameter_block(), phases),
    )
    check(plan)
    return plan


def check(plan: Plan) -> None:
    """Raises PlanError unless the plan is legal."""
    verify(plan, {"constants": len(CONSTANTS)}, Path("small.hjg"))


def weights_file(plan: Plan) -> bytes:
    """The bytes of `weights.bin`: norms around 1, the rest small; the same for the same plan."""
    return _random_bytes(plan.weights)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _random_bytes(weights: Sequence[Weight]) -> bytes:
    generator = np.random.default_rng(7)
    parts: list[bytes] = []
    for weight in weights:
        noise = generator.standard_normal(weight.shape)
        values = 1 + 0.1 * noise if "norm" in weight.name else noise / math.sqrt(weight.shape[-1])
        parts.append(values.astype("<f4").tobytes())
    return b"".join(parts)


def _weights(layers: int) -> tuple[Weight, ...]:
    shapes: dict[str, tuple[int, ...]] = {"embed": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        shapes |= {f"{layer}.{name}": shape for name, shape in LAYER_WEIGHTS.items()}
    shapes |= {"norm": (HIDDEN,), "head": (VOCABULARY, HIDDEN)}
    weights: list[Weight] = []
    offset = 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        weights.append(Weight(name, "float32", shape, size, (Source(0, offset, size, "float32", shape),)))
        offset += size
    return tuple(weights)


def _states(layers: int, context: int) -> tuple[State, ...]:
    rows = context + 1
    states: list[State] = []
    for layer in range(layers):
        shape = (KV_HEADS, rows, HEAD_SIZE)
        for name in ("key", "value"):
            states.append(State(f"{layer}.{name}_cache", "full_cache", "float32", shape, 4 * math.prod(shape)))
    return (
        *states,
        State("history", "token_history", "int32", (rows,), 4 * rows),
        State("sampled", "sampled", "int32", (1,), 4),
        State("logits", "logits", "float32", (1, VOCABULARY), 4 * VOCABULARY),
    )


class _PhaseBuilder:
    """Writes down the launches of one phase, one call a launch, and places the buffers when all are known."""

    def __init__(
        self,
        name: str,
        weights: Sequence[Weight],
        states: Sequence[State],
        rows: Expression,
        buckets: Sequence[int],
        context: int,
        blocks: int,
        function: str,
    ) -> None:
        self.name, self.rows, self.buckets, self.context = name, rows, tuple(buckets), context
        self.blocks, self.function = blocks, function
        self.weights: dict[str, Place] = {weight.name: ("weight", i) for i, weight in enumerate(weights)}
        self.states: dict[str, Place] = {state.name: ("state", i) for i, state in enumerate(states)}
        self.layers = sum(state.kind == "full_cache" for state in states) // 2
        self.launches: list[Launch] = []
        self.shapes: list[tuple[str, DType, tuple[Expression, ...]]] = []

    def buffer(self, name: str, *columns: int) -> Place:
        """A new float32 buffer [rows, columns, ...]."""
        self.shapes.append((name, "float32", (self.rows, *columns)))
        return "buffer", len(self.shapes) - 1

    def launch(
        self, name: str, op: str, attributes: dict[str, Attribute] | None = None, **places: Place | None
    ) -> None:
        declared = all_ops()[op]
        operands = tuple(
            Operand(role.name, place[0], place[1], role.access)
            for role in declared.roles
            if (place := places.get(role.name)) is not None
        )
        kernel = HostCall(declared.callback or self.function) if declared.host else ReferenceCall()
        self.launches.append(Launch(name, op, operands, {"cpu": kernel}, attributes or {}))

    def phase(self) -> Phase:
        self._network()
        schedules = self._schedules()
        orders = [[n for segment in schedule.segments for n in segment.launches] for schedule in schedules]
        low, high = 1, self.buckets[-1]
        keys = (SizeDeclaration("tokens", low, high, "key"),) if isinstance(self.rows, Size) else ()
        return Phase(
            name=self.name,
            entry="token",
            logits_rows="last",
            sizes=(
                *keys,
                SizeDeclaration("start", 0, self.context, "device"),
                SizeDeclaration("length", low, high, "device"),
            ),
            buffers=self._buffers(),
            launches=tuple(self.launches),
            edges=schedule_edges(orders),
            schedules=schedules,
            numerics=f"{self.name}/cpu",
        )

    def _network(self) -> None:
        parameters: Place = ("parameters", 0)
        states, weights = self.states, self.weights
        history, logits = states["history"], states["logits"]
        x = self.buffer("x", HIDDEN)
        cos, sin = self.buffer("cos", HEAD_SIZE // 2), self.buffer("sin", HEAD_SIZE // 2)
        self.launch("embed", "embedding", history=history, table=weights["embed"], parameters=parameters, y=x)
        self.launch(
            "rotary", "rotary_table", inverse_frequencies=("constant", 0), parameters=parameters, cos=cos, sin=sin
        )
        for layer in range(self.layers):
            x = self._layer(layer, x, cos, sin)
            if self.function and layer == 0:
                x, given = self.buffer("host", HIDDEN), x
                self.launch("host", "host_function", x=given, y=x)
        for block in range(self.layers, self.layers + self.blocks):
            x = self._block(block, x)
        self.launch(
            "head",
            "vocabulary_logits",
            {"epsilon": EPSILON},
            x=x,
            norm_weight=weights["norm"],
            weight=weights["head"],
            logits=logits,
        )
        self.launch("caller", "caller_logits", history=history, parameters=parameters, logits=logits)
        self.launch(
            "sample", "sample", logits=logits, history=history, parameters=parameters, sampled=states["sampled"]
        )

    def _layer(self, layer: int, x: Place, cos: Place, sin: Place) -> Place:
        parameters: Place = ("parameters", 0)
        weights = {name: self.weights[f"{layer}.{name}"] for name in LAYER_WEIGHTS}
        caches = {role: self.states[f"{layer}.{role}"] for role in ("key_cache", "value_cache")}
        query = self.buffer(f"{layer}.query", HEADS, HEAD_SIZE)
        attended = self.buffer(f"{layer}.attended", HEADS * HEAD_SIZE)
        middle, gated = self.buffer(f"{layer}.x", HIDDEN), self.buffer(f"{layer}.gated", INNER)
        out = self.buffer(f"{layer}.y", HIDDEN)
        self.launch(
            f"{layer}.attention_inputs",
            "attention_inputs",
            {"epsilon": EPSILON, "head_norm_epsilon": EPSILON, "ring": False},
            x=x,
            norm_weight=weights["attention_norm"],
            weight=weights["qkv"],
            cos=cos,
            sin=sin,
            parameters=parameters,
            query=query,
            **caches,
        )
        self.launch(
            f"{layer}.attention",
            "attention",
            {"scale": HEAD_SIZE**-0.5, "window": 0},
            query=query,
            parameters=parameters,
            y=attended,
            **caches,
        )
        self.launch(f"{layer}.o", "linear", x=attended, weight=weights["o"], residual=x, y=middle)
        self._gated(f"{layer}", weights, middle, gated)
        self.launch(f"{layer}.down", "linear", x=gated, weight=weights["down"], residual=middle, y=out)
        return out

    def _gated(self, name: str, weights: dict[str, Place], x: Place, y: Place) -> None:
        norm, weight = weights["mlp_norm"], weights["gate_up"]
        self.launch(f"{name}.gate_up", "gated_linear", {"epsilon": EPSILON}, x=x, norm_weight=norm, weight=weight, y=y)

    def _block(self, block: int, x: Place) -> Place:
        weights = {name: self.weights[f"0.{name}"] for name in LAYER_WEIGHTS}
        gated, middle = self.buffer(f"{block}.gated", INNER), self.buffer(f"{block}.x", HIDDEN)
        out = self.buffer(f"{block}.y", HIDDEN)
        self._gated(f"{block}", weights, x, gated)
        self.launch(f"{block}.down", "linear", x=gated, weight=weights["down"], y=middle)
        self.launch(f"{block}.o", "linear", x=middle, weight=weights["o"], y=out)
        return out

    def _schedules(self) -> tuple[Schedule, ...]:
        head, caller, sample = (len(self.launches) - n for n in (3, 2, 1))
        last_cache = max(n for n, launch in enumerate(self.launches) if launch.op == "attention_inputs")
        schedules = [
            Schedule("default", self._segments(*range(caller), sample)),
            Schedule("logits_processor", self._segments(*range(head + 1), caller, sample)),
        ]
        if isinstance(self.rows, Size):
            schedules.append(Schedule("prompt_only", self._segments(*range(last_cache + 1))))
        return tuple(schedules)

    def _segments(self, *launches: int) -> tuple[Segment, ...]:
        runs = groupby(launches, key=lambda number: all_ops()[self.launches[number].op].host)
        return tuple(self._dynamic(*numbers) if host else self._static(*numbers) for host, numbers in runs)

    def _dynamic(self, *launches: int) -> Segment:
        chains = {"caller": ("caller", "logits"), "host": ("host", "by hand", self.function)}
        names = {number: chains[self.launches[number].name] for number in launches}
        reasons = tuple(Reason(number, ReasonCode.HOST_READ, chain) for number, chain in names.items())
        return DynamicSegment(launches, reasons)

    def _static(self, *launches: int) -> Segment:
        keys = ("tokens",) if isinstance(self.rows, Size) else ()
        return StaticSegment(launches, CaptureKey(keys, self.buckets))

    def _buffers(self) -> tuple[Buffer, ...]:
        """Each buffer at the lowest place that no buffer alive with it takes: bytes of dead buffers are used again.
        They were written down in the order of their first launches, so that one dead for one is dead for all after."""
        users: list[list[int]] = [[] for _ in self.shapes]
        for number, launch in enumerate(self.launches):
            for operand in launch.operands:
                if operand.space == "buffer":
                    users[operand.index].append(number)
        placed: list[Buffer] = []
        alive: list[Buffer] = []
        for (name, dtype, shape), (first, *_, last) in zip(self.shapes, users, strict=True):
            size = ITEM_BYTES[dtype] * math.prod(evaluate(axis, {"tokens": self.buckets[-1]}) for axis in shape)
            alive = [buffer for buffer in alive if buffer.last >= first]
            placed.append(Buffer(name, dtype, shape, _lowest_gap(alive, size), size, first, last))
            alive.append(placed[-1])
        return tuple(placed)


def _lowest_gap(alive: Sequence[Buffer], size: int) -> int:
    offset = 0
    for buffer in sorted(alive, key=lambda b: b.offset):
        if offset + size <= buffer.offset:
            break
        offset = max(offset, -(-(buffer.offset + buffer.bytes) // 256) * 256)
    return offset
