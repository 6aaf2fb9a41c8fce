"""What does the recognised graph compute for a prompt, and what for one token: steps over tensors, with size ranges?"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice, pairwise
from pathlib import Path

import onnx_ir as ir

from hjgc.compiler.foreign import Foreign
from hjgc.compiler.foreign_model import foreign_model, try_rows
from hjgc.compiler.function.islands import SubModel, causes, table
from hjgc.compiler.kernels.prefill_choice import range_ends
from hjgc.compiler.options import DEFAULT_CONTEXT, Options
from hjgc.compiler.program import Network, Program, Step, Tensor
from hjgc.compiler.recognise import Recognised
from hjgc.compiler.row_launches import Surroundings, row_launches
from hjgc.compiler.rules.rule import VALUE_KEY, node_name, source_nodes
from hjgc.compiler.tables import DTYPES, Tables
from hjgc.plan_format.dtypes import ITEM_BYTES, DType
from hjgc.plan_format.errors import CompileError, InputError
from hjgc.plan_format.ops.declaration import LOGITS_PROCESSOR
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.sizes import Expression, Size, SizeDeclaration
from hjgc.plan_format.structs import Attribute, DTypes, State

MOST_ROWS = 512
"""Rows that a prompt phase on a GPU is declared for, at least."""
HALVES = ("float16", "bfloat16")
"""What GPU kernels compute with."""
SPARE_ROWS = 1
"""Rows of the cache past the context: the step launched ahead of a stop writes one."""


def specialise(recognised: Recognised, options: Options, path: Path) -> tuple[Network, list[Path]]:
    """The network and the weight files it names. Raises CompileError, InputError."""
    model = recognised.model
    dtypes = choose_dtypes(model, options)
    context = choose_context(model, options, recognised.most_tokens)
    phases = _phases(options, context)
    most_rows = max(size.high for _, _, sizes, _ in phases for size in sizes if size.name == "tokens")
    gpus = tuple(target for target in options.targets if target != "cpu")
    builder = _Builder(model, path, dtypes, context, most_rows, recognised.foreign, gpus)
    programs = tuple(builder.program(*phase) for phase in phases)
    tables = builder.tables
    steps = iter(tables.keep([step for program in programs for step in program.steps]))
    programs = tuple(replace(program, steps=tuple(islice(steps, len(program.steps)))) for program in programs)
    islands, island_bytes = table([made for made, _ in builder.islands.values()])
    network = Network(
        dtypes=dtypes,
        weights=tuple(tables.weights.values()),
        constants=tuple(tables.constants.values()),
        constant_bytes=bytes(tables.constant_bytes),
        states=tuple(builder.states.values()),
        programs=programs,
        vocab_size=builder.vocab_size,
        layers=builder.layers,
        islands=islands,
        island_bytes=island_bytes,
        notes=tuple(builder.notes),
    )
    return network, tables.files


def choose_dtypes(model: ir.Model, options: Options) -> DTypes:
    """float32 on the CPU, the checkpoint's own type on a GPU, or what the user said; logits and sums in float32.

    Raises InputError for a type that a target has no kernels for."""
    gpus = [target for target in options.targets if target != "cpu"]
    dtype: DType | None = options.dtype
    if dtype is None:
        dtype = _half_dtype(model) if gpus else "float32"
    if gpus and dtype not in HALVES:
        problem = f"expected {' or '.join(HALVES)} on {gpus[0]}, found {dtype}"
        raise InputError("--dtype", problem, next_step="choose one of these, or compile for cpu alone")
    return DTypes(weights=dtype, compute=dtype, accumulation="float32", cache=dtype, logits="float32")


def _half_dtype(model: ir.Model) -> DType:
    """The checkpoint's own type if it is one of two bytes, else float16, which keeps more digits."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    largest = max((tensor for tensor in tensors if tensor is not None), key=lambda tensor: tensor.nbytes)
    found = DTYPES.get(largest.dtype, "float32")
    return found if found in HALVES else "float16"


def choose_context(model: ir.Model, options: Options, held: int | None = None) -> int:
    """The user's, or the model's own up to 4096. `held`: tokens that the file's own caches have room for. Raises
    InputError for more than the model was made for."""
    declared = model.metadata_props.get("hjgc.context")
    own = int(declared) if declared and re.fullmatch(r"[1-9]\d{0,8}", declared, re.ASCII) else None
    own = min((bound for bound in (own, held) if bound is not None), default=None)
    if options.context is None:
        context = min(own or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
        return max(context, 2)
    if own is not None and options.context > own:
        raise InputError("--context", f"expected at most the model's {own} tokens, found {options.context}")
    return options.context


def device_buckets(targets: Iterable[str], high: int) -> tuple[int, ...]:
    """Where some range of rows ends on a GPU, and between them as few as leave none over half empty: 1, 3, 7, 16."""
    ends = sorted({end for target in targets for end in range_ends(target, high)})
    between = (bucket for below, end in pairwise((0, *ends)) for bucket in _halves(below, end))
    return tuple(sorted({*ends, *between}))


def _halves(below: int, end: int) -> Iterator[int]:
    """Buckets over `below` and under `end`: the next is never over twice the least length that is too long for one."""
    while end > 2 * (below + 1) or end == 2:
        end = -(-end // 2) - 1 or 1
        yield end


def choose_buckets(low: int, high: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... to `high`: powers of two and the halfway points, so that no graph runs more than a
    third empty past 2. None is built for fewer than `low` tokens: such prompts run plainly."""
    steps: list[int] = []
    power = 1
    while power < high:
        steps += [power] if power < 2 else [power, power + power // 2]
        power *= 2
    kept = [step for step in steps if step < high and step >= low]
    return (*kept, high)


_PhaseShape = tuple[str, Expression, tuple[SizeDeclaration, ...], tuple[int, ...]]
"""Name, rows, sizes, buckets."""


def _phases(options: Options, context: int) -> tuple[_PhaseShape, ...]:
    """A prompt of 1 to `high` tokens at a time, of which graphs serve `low` and more; then one token at a time.

    On a GPU up to MOST_ROWS whatever the user said: the kernels for more rows than that are built once they are needed.
    """
    low, high = options.prompt
    high = min(high, context)
    low = min(low, high)
    start = SizeDeclaration("start", 0, context, "device")
    gpus = [target for target in options.targets if target != "cpu"]
    if gpus:
        high = max(high, min(MOST_ROWS, context))
    rows = SizeDeclaration("tokens", 1, high, "key")
    length = SizeDeclaration("length", 1, high, "device")
    buckets = device_buckets(gpus, high) if gpus else choose_buckets(low, high)
    return (
        ("prefill", Size("tokens"), (rows, start, length), buckets),
        ("decode", 1, (start,), (1,)),
    )


@dataclass
class _Builder:
    """Walks the graph once a phase; tables and states are shared by the phases."""

    model: ir.Model
    path: Path
    dtypes: DTypes
    context: int
    most_rows: int
    foreign: tuple[Foreign, ...] = ()
    gpus: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.tables = Tables(self.path, self.dtypes.weights)
        self.states: dict[str, State] = {}
        self.islands: dict[int, tuple[SubModel, list[Tensor]]] = {}
        self.tried: set[ir.Node] = set()
        self.notes: list[str] = []
        self.vocab_size = 0
        self.layers = 0

    def program(
        self, phase: str, rows: Expression, sizes: tuple[SizeDeclaration, ...], buckets: tuple[int, ...]
    ) -> Program:
        self.rows, self.sizes = rows, sizes
        self.tensors: dict[ir.Value, Tensor] = {}
        self.layer = -1
        self.steps: list[Step] = []
        self.state("history", "token_history", "int32", (self.context + SPARE_ROWS + 1,))
        for node in self.model.graph:
            self._visit(node)
        self.layers = self.layer + 1
        self._finish()
        return Program(phase, sizes, buckets, tuple(self.steps))

    def _visit(self, node: ir.Node) -> None:
        visit = getattr(self, f"_visit_{node.op_type}", None)
        if visit is not None:
            visit(node)

    def _visit_Embedding(self, node: ir.Node) -> None:
        table = self.tables.weight([_input(node, 1)], [bool(node.attributes.get_int("transposed", 0))])
        self.vocab_size = int(table.shape[0])  # type: ignore[arg-type]
        operands = {"history": self.state_tensor("history"), "table": table, "parameters": PARAMETERS}
        self._step(node, "embedding", "embedding", operands, {"y": (node.outputs[0], (self.rows, table.shape[1]))})

    def _visit_RotaryAngles(self, node: ir.Node) -> None:
        frequencies = self.tables.constant(_input(node, 1), "float32")
        pair = {user.op_type: user for user, _ in node.outputs[0].uses()}
        shape = (self.rows, frequencies.shape[0])
        outputs = {role: (pair[name].outputs[0], shape) for role, name in (("cos", "Cos"), ("sin", "Sin"))}
        operands = {"inverse_frequencies": frequencies, "parameters": PARAMETERS}
        self._step(node, "rotary_table", "rotary_table", operands, outputs, dtype="float32")

    def _visit_AttentionInputs(self, node: ir.Node) -> None:
        self.layer += 1
        heads, size = node.attributes.get_int("heads", 0), node.attributes.get_int("head_dim", 0)
        flags = [bool(flag) for flag in node.attributes["transposed"].as_ints()]
        operands = {
            "x": self._get(node, 0),
            "norm_weight": self.tables.weight([_input(node, 1)]),
            "weight": self.tables.weight(_inputs(node, (2, 3, 4)), flags),
        }
        if biases := _inputs(node, (5, 6, 7)):
            operands["bias"] = self.tables.weight(biases)
        if node.inputs[8] is not None:
            operands["query_norm"] = self.tables.weight([_input(node, 8)])
            operands["key_norm"] = self.tables.weight([_input(node, 9)])
        operands |= {"cos": self._get(node, 10), "sin": self._get(node, 11), "parameters": PARAMETERS}
        names = ("epsilon", "head_norm_epsilon")
        attributes: dict[str, Attribute] = {name: float(node.attributes[name].as_float()) for name in names}
        query = {"query": (node.outputs[0], (self.rows, heads, size))}
        caches = self._caches(node.attributes.get_int("kv_heads", 0), size, self._window(_attention_of(node)))
        attributes["ring"] = self.states[caches["key_cache"].name].kind == "ring_cache"
        self._step(node, self._layer_name("attention_inputs"), "attention_inputs", operands, query, attributes, caches)

    def _caches(self, kv_heads: int, size: int, window: int) -> dict[str, Tensor]:
        """A ring where keys leave the window before the context ends: room for the window and for the rows of a
        call."""
        full, ring = self.context + SPARE_ROWS, window + self.most_rows
        kind, rows = ("ring_cache", ring) if window and ring < full else ("full_cache", full)
        roles = {role: f"cache.{self.layer}.{role}" for role in ("key", "value")}
        return {
            f"{role}_cache": self.state(name, kind, self.dtypes.cache, (kv_heads, rows, size))
            for role, name in roles.items()
        }

    def _window(self, attention: ir.Node) -> int:
        """Keys that a query sees; 0 for all, also where no key ever leaves it."""
        window, untried = attention.attributes.get_int("window", 0), attention.attributes.get_int("untried", 0)
        if 0 < untried <= self.context:
            problem = (
                f"expected a context below {untried}, up to which its attention could be tried, found {self.context}"
            )
            field = f"node {node_name(attention)}"
            raise CompileError(self.path, problem, field=field, next_step="give a smaller --context")
        return window if window <= self.context else 0

    def _visit_Attention(self, node: ir.Node) -> None:
        query = self._get(node, 0)
        operands = {
            "query": query,
            "key_cache": self.state_tensor(f"cache.{self.layer}.key"),
            "value_cache": self.state_tensor(f"cache.{self.layer}.value"),
            "parameters": PARAMETERS,
        }
        columns = int(query.shape[1]) * int(query.shape[2])  # type: ignore[arg-type]
        attributes = {"scale": float(node.attributes["scale"].as_float()), "window": self._window(node)}
        outputs = {"y": (node.outputs[0], (self.rows, columns))}
        self._step(node, self._layer_name("attention"), "attention", operands, outputs, attributes)

    def _visit_Linear(self, node: ir.Node) -> None:
        weight = self.tables.weight([_input(node, 1)], [bool(node.attributes.get_int("transposed", 0))])
        operands = {"x": self._get(node, 0), "weight": weight}
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            operands["bias"] = self.tables.weight([_input(node, 2)])
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            operands["residual"] = self._get(node, 3)
        name = self._layer_name((_input(node, 1).name or "linear").removesuffix(".weight").rsplit(".", 1)[-1])
        self._step(node, name, "linear", operands, {"y": (node.outputs[0], (self.rows, weight.shape[0]))})

    def _visit_RmsNorm(self, node: ir.Node) -> None:
        x = self._get(node, 0)
        operands = {"x": x, "weight": self.tables.weight([_input(node, 1)])}
        attributes = {"epsilon": float(node.attributes["epsilon"].as_float())}
        name = self._layer_name("rms_norm")
        self._step(node, name, "rms_norm", operands, {"y": (node.outputs[0], x.shape)}, attributes)

    def _visit_HostCall(self, node: ir.Node) -> None:
        x, callback = self._get(node, 0), node.attributes["name"].as_string()
        name = self._layer_name("host_function")
        self._step(node, name, "host_function", {"x": x}, {"y": (node.outputs[0], x.shape)}, callback=callback)

    def _visit_Island(self, node: ir.Node) -> None:
        """A sub-model of ONNX Runtime's, one for all phases."""
        number = node.attributes["number"].as_int()
        foreign = self.foreign[number]
        rows = [self._get(node, i) for i in range(len(node.inputs))]
        if number not in self.islands and self._as_launches(node, foreign, rows):
            return
        if number not in self.islands:
            self.islands[number] = self._island(foreign, rows)
        made, weights = self.islands[number]
        operands = {f"x{i}": tensor for i, tensor in enumerate((*rows, *weights))}
        shapes = zip(node.outputs, foreign.columns, strict=True)
        outputs = {f"y{i}": (value, (self.rows, columns)) for i, (value, columns) in enumerate(shapes)}
        self._step(node, self._layer_name("island"), "island", operands, outputs)
        place = list(self.islands).index(number)
        self.steps[-1] = replace(self.steps[-1], nodes=made.nodes, island=place, causes=tuple(causes(foreign.why)))

    def _as_launches(self, node: ir.Node, foreign: Foreign, rows: Sequence[Tensor]) -> bool:
        """Whether launches of ours compute all of the sub-model, which has been tried then. What numbers choose the
        addresses of is left to ONNX Runtime, between the captured segments."""
        if any(why.code is ReasonCode.DATA_DEPENDENT_ADDRESS for why in foreign.why.values()):
            return False
        made, _ = foreign_model(self.model, foreign, self.dtypes.compute, batched=True)
        around = Surroundings(self.tables, {size.name: size for size in self.sizes}, self.gpus, self.path)
        names = set[str]()

        def name(op: str) -> str:
            names.add(found := self._layer_name(op, names))
            return found

        found = row_launches(made, rows, foreign.columns, around, name)
        if found is None:
            return False
        if node not in self.tried:
            self._try(foreign, rows)
            self.tried.add(node)
        self.steps += found.steps
        self.tensors |= dict(zip(node.outputs, found.results, strict=True))
        return True

    def _try(self, foreign: Foreign, rows: Sequence[Tensor]) -> None:
        """In float32, on rows of the widths that it gets. Raises CompileError where a row depends on others."""
        tried, weights = foreign_model(self.model, foreign, "float32")
        widths = [width for tensor in rows if isinstance(width := tensor.shape[-1], int)]
        note = try_rows(tried, weights, widths, self.path)
        self.notes += [note] if note else []

    def _island(self, foreign: Foreign, rows: Sequence[Tensor]) -> tuple[SubModel, list[Tensor]]:
        made, weights = foreign_model(self.model, foreign, self.dtypes.compute)
        self._try(foreign, rows)
        return made, [self.tables.tensor(value, placement="cpu") for value in weights]

    def _visit_GatedLinear(self, node: ir.Node) -> None:
        flags = [bool(flag) for flag in node.attributes["transposed"].as_ints()]
        weight = self.tables.weight(_inputs(node, (2, 3)), flags)
        operands = {"x": self._get(node, 0), "norm_weight": self.tables.weight([_input(node, 1)]), "weight": weight}
        if biases := _inputs(node, (4, 5)):
            operands["bias"] = self.tables.weight(biases)
        outputs = {"y": (node.outputs[0], (self.rows, int(weight.shape[0]) // 2))}  # type: ignore[arg-type]
        attributes = {"epsilon": float(node.attributes["epsilon"].as_float())}
        self._step(node, self._layer_name("gated_linear"), "gated_linear", operands, outputs, attributes)

    def _visit_VocabularyLogits(self, node: ir.Node) -> None:
        weight = self.tables.weight([_input(node, 2)], [bool(node.attributes.get_int("transposed", 0))])
        operands = {"x": self._get(node, 0), "norm_weight": self.tables.weight([_input(node, 1)]), "weight": weight}
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            operands["bias"] = self.tables.weight([_input(node, 3)])
        if weight.shape[0] != self.vocab_size:
            problem = f"expected {self.vocab_size} rows as in the embedding, found {weight.shape[0]}"
            field = f"initializer {_input(node, 2).name}"
            raise CompileError(self.path, problem, field=field, next_step="take the head that belongs to the embedding")
        logits = {"logits": self.state("logits", "logits", "float32", (1, self.vocab_size))}
        attributes = {"epsilon": float(node.attributes["epsilon"].as_float())}
        self._step(node, "vocabulary_logits", "vocabulary_logits", operands, {}, attributes, logits)

    def _finish(self) -> None:
        """The caller's logits processor and the sampler, which no ONNX graph has."""
        history, logits = self.state_tensor("history"), self.state_tensor("logits")
        common = {"history": history, "parameters": PARAMETERS, "logits": logits}
        self.steps.append(Step("caller_logits", "caller_logits", common, callback=LOGITS_PROCESSOR))
        sampled = self.state("sampled", "sampled", "int32", (1,))
        self.steps.append(Step("sample", "sample", {**common, "sampled": sampled}))

    def state(self, name: str, kind: str, dtype: DType, shape: tuple[int, ...]) -> Tensor:
        """Declare a state, once for all phases."""
        size = ITEM_BYTES[dtype]
        for axis in shape:
            size *= axis
        self.states.setdefault(name, State(name, kind, dtype, shape, size))  # type: ignore[arg-type]
        return self.state_tensor(name)

    def state_tensor(self, name: str) -> Tensor:
        entry = self.states[name]
        return Tensor(name, "state", entry.dtype, entry.shape, list(self.states).index(name))

    def _get(self, node: ir.Node, index: int) -> Tensor:
        value = _input(node, index)
        tensor = self.tensors.get(value)
        if tensor is None:
            raise CompileError(
                self.path, f"expected {value.name} computed before, found it missing", field=f"node {node_name(node)}"
            )
        return tensor

    def _layer_name(self, name: str, others: Collection[str] = ()) -> str:
        """One that no step has, nor is among `others`."""
        full = f"layers.{self.layer}.{name}" if self.layer >= 0 else name
        taken = {*others, *(step.name for step in self.steps)}
        spellings = chain((full,), (f"{full}.{i}" for i in count(2)))
        return next(spelling for spelling in spellings if spelling not in taken)

    def _step(
        self,
        node: ir.Node,
        name: str,
        op: str,
        operands: dict[str, Tensor],
        outputs: dict[str, tuple[ir.Value, tuple[Expression, ...]]],
        attributes: Mapping[str, Attribute] | None = None,
        states: dict[str, Tensor] | None = None,
        *,
        dtype: DType | None = None,
        callback: str = "",
    ) -> None:
        """Add a step; its outputs become tensors that later steps find by ONNX value."""
        made: dict[str, Tensor] = {}
        for role, (value, shape) in outputs.items():
            made[role] = Tensor(f"{name}.{role}", "buffer", dtype or self.dtypes.compute, shape)
            self.tensors[value] = made[role]
        held = {role: value for role, (value, _) in outputs.items()}
        held |= dict(zip(states or {}, node.outputs[len(outputs) :] or node.outputs, strict=False))
        names = {role: value.metadata_props.get(VALUE_KEY, value.name) for role, value in held.items()}
        values = {role: name for role, name in names.items() if name}
        self.steps.append(
            Step(
                name, op, operands | made | (states or {}), dict(attributes or {}), source_nodes(node), values, callback
            )
        )


PARAMETERS = Tensor("parameters", "parameters", "uint8", ())


def _attention_of(inputs: ir.Node) -> ir.Node:
    """The node that attends with these inputs."""
    return next(user for user, _ in inputs.outputs[0].uses() if user.op_type == "Attention")


def _inputs(node: ir.Node, indices: Iterable[int]) -> list[ir.Value]:
    """Those of these operands that are there."""
    return [value for i in indices if i < len(node.inputs) and (value := node.inputs[i]) is not None]


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
