"""What is a plan? Every part of it, frozen, so that an illegal state is hard to write and impossible to load.

Indices point into the tables of the same plan (`Operand.index` into the table its `space` names). Sizes are in
elements unless a name says bytes. Fields added later go last, with defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.reasons import Reason
from hjgc.plan_format.sizes import Expression, SizeDeclaration

FORMAT_VERSION = "1.0"
ALWAYS: tuple[str, ...] = ("parameter_block", "token_history")
"""Features that every plan needs."""
FEATURES: frozenset[str] = frozenset({*ALWAYS, "quantised_sources", "functions", "islands"})
"""Features this reader understands; a plan that names another is refused."""

Placement = Literal["device", "pinned_host", "cpu"]
Access = Literal["read", "write", "read_write"]
FieldType = Literal["int32", "uint32", "float32"]
Space = Literal["buffer", "weight", "constant", "state", "parameters", "value"]
Attribute = bool | int | float | str | tuple[int, ...]
ParameterKind = Literal["pointer", "int32", "int64", "float32", "scratch", "tensor_map"]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """The base of every table entry: immutable, and unknown fields are an error that names them.

    No entry can be part of a cycle, and a 7B plan has 25,000: Python's collector, which would stop a request for 3 ms
    to look at them, does not."""


class Producer(Record, frozen=True):
    """Who made this plan from what: enough to tell two builds apart."""

    hjgc: str
    onnx_producer: str
    onnx_sha256: str
    opset: int
    options: dict[str, str]


class TextFile(Record, frozen=True):
    """A small file beside the weights that the runtime needs, checked by digest."""

    name: str
    sha256: str


class Model(Record, frozen=True):
    """What the plan serves. `context` counts the tokens that the cache holds, prompt and answer together."""

    name: str
    architecture: str
    vocab_size: int
    context: int
    layers: int
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None
    tokenizer: TextFile | None = None
    generation: dict[str, float] = {}


class DTypes(Record, frozen=True):
    """Element types by role."""

    weights: DType
    compute: DType
    accumulation: DType
    cache: DType
    logits: DType


class WeightFile(Record, frozen=True):
    """A file of weights, named relative to the weights root, with the fingerprint that is checked at load.

    `head_sha256`: of the first min(bytes, 65536) bytes. `sample_sha256`: of 64 evenly spaced blocks of 4096 bytes.
    `sha256`: of the whole file where the compiler computed it."""

    name: str
    bytes: int
    head_sha256: str
    sample_sha256: str
    sha256: str | None = None


class Part(Record, frozen=True):
    """`length` bytes at `offset` of `files[file]`, elements of `dtype`."""

    file: int
    offset: int
    length: int
    dtype: DType


class Blocks(Record, frozen=True):
    """How a source is quantised: whole numbers of `bits` (4 or 8), low half of a byte first, each times the scale of
    its block of `size` along `axis` after its zero point is taken off. Along axis 1 each row is filled up to whole
    blocks and begins with a byte of its own, and so are its zero points. Without `zeros` the zero point is 0 where
    numbers are `signed` (two's complement), else 2^(bits - 1)."""

    bits: Literal[4, 8]
    size: int
    axis: Literal[0, 1]
    scales: Part
    zeros: Part | None = None
    signed: bool = False


class Source(Record, frozen=True):
    """Where a packed weight comes from: `length` bytes at `offset` of `files[file]`, row-major `shape` of `dtype`,
    then rows [slice_start, slice_stop) of it if given, then transposed if said. With `blocks`, `dtype` is uint8 and
    `shape` counts the numbers, not the bytes."""

    file: int
    offset: int
    length: int
    dtype: DType
    shape: tuple[int, ...]
    slice_start: int | None = None
    slice_stop: int | None = None
    transpose: bool = False
    blocks: Blocks | None = None


class Weight(Record, frozen=True):
    """One packed weight: its sources stacked along axis 0, converted to `dtype`, in `layout`, at `placement`."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    bytes: int
    sources: tuple[Source, ...]
    layout: Literal["row_major"] = "row_major"
    placement: Placement = "device"


class Constant(Record, frozen=True):
    """A small tensor inside the plan: `length` bytes at `offset` of the constants section."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    length: int


class State(Record, frozen=True):
    """Memory that lives as long as the session, at a fixed address. `full_cache` and `ring_cache` hold
    [heads, rows, head size]; `token_history` the ids of prompt and answer; `sampled` the last token chosen;
    `logits` the last row of logits; `counters` are zero when a session begins and after every launch that uses them;
    `recurrent` is room for networks that carry a state."""

    name: str
    kind: Literal["full_cache", "ring_cache", "token_history", "sampled", "logits", "counters", "recurrent"]
    dtype: DType
    shape: tuple[int, ...]
    bytes: int
    placement: Placement = "device"


class ParameterField(Record, frozen=True):
    """One number of the device parameter block."""

    name: str
    dtype: FieldType
    offset: int


class ParameterBlock(Record, frozen=True):
    """The small block on the device that carries what changes from request to request."""

    bytes: int
    fields: tuple[ParameterField, ...]


class Buffer(Record, frozen=True):
    """An activation: `bytes` at `offset` of the arena, alive from launch `first` to launch `last` of its phase. With
    `view_of` it is the same bytes as that buffer of the phase, in another shape, and a launch that touches the one
    touches the other."""

    name: str
    dtype: DType
    shape: tuple[Expression, ...]
    offset: int
    bytes: int
    first: int
    last: int
    view_of: int | None = None


class HostValue(Record, frozen=True):
    """What only the host holds, between islands: of an element type or a shape that no buffer has, a sequence, text.
    `type` is spelt as ONNX does: `tensor(string)`, `seq(tensor(float))`, `optional(...)`."""

    name: str
    type: str


class Port(Record, frozen=True):
    """A named operand or result of a function: `buffers[index]`, or `values[index]`. `shape` as far as it is declared,
    an unknown axis as None, an unknown rank as None altogether."""

    name: str
    space: Literal["buffer", "value"]
    index: int
    type: str
    shape: tuple[Expression | None, ...] | None = None


class Operand(Record, frozen=True):
    """One operand of a launch: its role as the op declares it, and where it lives."""

    role: str
    space: Space
    index: int
    access: Access


class OperandArgument(Record, frozen=True, tag="operand"):
    """A kernel argument that is the address of `operands[index]` of the launch: a multiple of 256."""

    index: int


class ParameterArgument(Record, frozen=True, tag="parameter"):
    """A kernel argument that is the address of a field of the parameter block: a multiple of 4. Whatever the op, the
    launch then reads the block, and so must be ordered after a launch that writes it."""

    name: str


class ValueArgument(Record, frozen=True, tag="value"):
    """A kernel argument that is an integer computed from key sizes."""

    value: Expression


class AttributeArgument(Record, frozen=True, tag="attribute"):
    """A kernel argument that is an attribute of the launch."""

    name: str


class TensorMapArgument(Record, frozen=True, tag="tensor_map"):
    """A kernel argument that is a tensor map (128 bytes, by value), through which Hopper's copy engine reads boxes of
    `operands[index]`. `sizes` and `box` are in elements, innermost axis first; `strides` in bytes, of every axis but
    the innermost; `swizzle` in bytes (0: none). What lies outside `sizes` reads as zero."""

    index: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: Literal[0, 32, 64, 128] = 0


Argument = OperandArgument | ParameterArgument | ValueArgument | AttributeArgument | TensorMapArgument


class ReferenceCall(Record, frozen=True, tag="reference"):
    """Run the op's reference meaning (the `cpu` target)."""


class TemplateCall(Record, frozen=True, tag="template"):
    """Launch `variants[variant]` over `grid` (of key sizes), arguments in the variant's parameter order."""

    variant: int
    grid: tuple[Expression, Expression, Expression]
    arguments: tuple[Argument, ...]


class RowRange(Record, frozen=True):
    """`call` serves up to `high` rows."""

    high: int
    call: TemplateCall


class RowsCall(Record, frozen=True, tag="rows"):
    """One call for each range of row counts: the first whose `high` is not under the rows of this call. The true length
    decides, so ranges end where buckets end: every path of one length makes the same call."""

    ranges: tuple[RowRange, ...]


class LibraryCall(Record, frozen=True, tag="library"):
    """Call `routine` of `library` with a chosen algorithm and a workspace in the arena."""

    library: str
    routine: str
    algorithm: int
    workspace_bytes: int


class HostCall(Record, frozen=True, tag="host"):
    """Hand the operands to a callback that the caller registered under this name."""

    callback: str


class IslandCall(Record, frozen=True, tag="island"):
    """Have ONNX Runtime run `islands[island]`: its inputs are the operands that are read, in order, its outputs those
    that are written."""

    island: int


Kernel = ReferenceCall | TemplateCall | RowsCall | LibraryCall | HostCall | IslandCall


def template_calls(kernel: Kernel) -> tuple[TemplateCall, ...]:
    """Every template call that the kernel may make."""
    match kernel:
        case TemplateCall():
            return (kernel,)
        case RowsCall():
            return tuple(entry.call for entry in kernel.ranges)
        case _:
            return ()


def map_calls(kernel: Kernel, change: Callable[[TemplateCall], TemplateCall]) -> Kernel:
    """The kernel with each of its template calls changed."""
    match kernel:
        case TemplateCall():
            return change(kernel)
        case RowsCall():
            return RowsCall(tuple(RowRange(entry.high, change(entry.call)) for entry in kernel.ranges))
        case _:
            return kernel


def call_for(kernel: Kernel, rows: int) -> TemplateCall | None:
    """The template call that serves so many rows; None if the kernel is no template's, or no range holds them."""
    if isinstance(kernel, RowsCall):
        return next((entry.call for entry in kernel.ranges if rows <= entry.high), None)
    return kernel if isinstance(kernel, TemplateCall) else None


class Launch(Record, frozen=True):
    """One call of an op. `kernels` says how, by target. `device` and `rank` are room for several cards."""

    name: str
    op: str
    operands: tuple[Operand, ...]
    kernels: dict[str, Kernel]
    attributes: dict[str, Attribute] = {}
    placement: Placement = "device"
    device: int = 0
    rank: int = 0


class Edge(Record, frozen=True, array_like=True):
    """`after` may start once `before` has finished (`full`), or once it has triggered its dependents and `after`
    itself waits before it touches what `before` writes (`pdl`). On a target where either end is not a variant built for
    that, a `pdl` edge is a full one."""

    before: int
    after: int
    kind: Literal["full", "pdl"] = "full"


class CaptureKey(Record, frozen=True):
    """A graph of the segment serves one value of each size named here; `buckets` are the values it is built for."""

    sizes: tuple[str, ...]
    buckets: tuple[int, ...]


class StaticSegment(Record, frozen=True, tag="static"):
    """Launches that replay as one graph."""

    launches: tuple[int, ...]
    key: CaptureKey


class DynamicSegment(Record, frozen=True, tag="dynamic"):
    """Launches that run one by one, and at least one reason why."""

    launches: tuple[int, ...]
    reasons: tuple[Reason, ...]


Segment = StaticSegment | DynamicSegment


class Schedule(Record, frozen=True):
    """The segments of one way to run a phase: `default`, `logits_processor` (stops at the logits for the caller),
    or `prompt_only` (fills the cache for a chunk that is not the last)."""

    name: str
    segments: tuple[Segment, ...]


class Phase(Record, frozen=True):
    """One specialisation of the network: its launches in order, the edges between them, and how they are cut.

    `numerics` names the class of arithmetic: every path of one (phase, start, length) gives the same bits. `inputs` are
    the buffers that the caller fills before the first launch, `outputs` those it reads after the last. A phase with
    entry `function` is one of named `arguments` with named `results`; `values` are what its islands hand on."""

    name: str
    entry: Literal["token", "embedding", "tensor", "function"]
    logits_rows: Literal["last", "all", "none"]
    sizes: tuple[SizeDeclaration, ...]
    buffers: tuple[Buffer, ...]
    launches: tuple[Launch, ...]
    edges: tuple[Edge, ...]
    schedules: tuple[Schedule, ...]
    numerics: str
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    values: tuple[HostValue, ...] = ()
    arguments: tuple[Port, ...] = ()
    results: tuple[Port, ...] = ()

    def schedule(self, name: str = "default") -> Schedule:
        """The schedule called `name`; every phase has the default one. Raises KeyError."""
        for schedule in self.schedules:
            if schedule.name == name:
                return schedule
        raise KeyError(name)


class Island(Record, frozen=True):
    """A sub-model that ONNX Runtime runs: `length` bytes at `offset` of the islands section, an ONNX model whose graph
    has the inputs and outputs named here, in order; `nodes` are what it computes, by ONNX node."""

    name: str
    offset: int
    length: int
    sha256: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]


class TemplateFile(Record, frozen=True):
    """A file that a template is written in: `length` bytes at `offset` of the templates section, with their sha256."""

    name: str
    offset: int
    length: int
    sha256: str


class Template(Record, frozen=True):
    """A kernel template installed with hjgc: `digest` is the sha256 of its text with its helpers, which `files` hold,
    for people and tools to read. What is built is the installed text, if its digest is this one. `only`: the one target
    that it can be built for."""

    name: str
    digest: str
    axes: tuple[str, ...]
    files: tuple[TemplateFile, ...] = ()
    only: str | None = None


class CodeReference(Record, frozen=True):
    """Device code: `length` bytes at `offset` of the cubin or ptx section, with their sha256."""

    section: Literal["cubin", "ptx"]
    offset: int
    length: int
    sha256: str


class BuiltCode(Record, frozen=True):
    """What building a variant gave, and how its `entry` is launched."""

    entry: str
    threads: int
    shared_bytes: int
    code: CodeReference
    registers: int | None = None


class Variant(Record, frozen=True):
    """A template for one target with fixed axes. `parameters` is the launch ABI in order; `scratch` are the compiler's
    own pointers, passed as null; a `tensor_map` is 128 bytes by value. `built` is None for one that was not built ahead
    of time: it may be, from its template, when it is needed."""

    template: int
    target: str
    axes: dict[str, bool | int | str]
    parameters: tuple[ParameterKind, ...]
    pdl: bool = False
    built: BuiltCode | None = None


class Ledger(Record, frozen=True):
    """What the plan costs, in bytes. `kv_per_token` over all layers; `states` includes the whole KV cache;
    `graph` is the estimate for one captured graph by `phase/schedule`."""

    weights: int
    arena: int
    states: int
    kv_per_token: int
    constants: int
    parameters: int
    graph: dict[str, int]
    total: int


class Plan(Record, frozen=True):
    """The whole plan section."""

    format: str
    features: tuple[str, ...]
    producer: Producer
    model: Model
    targets: tuple[str, ...]
    dtypes: DTypes
    files: tuple[WeightFile, ...]
    weights: tuple[Weight, ...]
    constants: tuple[Constant, ...]
    states: tuple[State, ...]
    parameters: ParameterBlock
    arena_bytes: int
    phases: tuple[Phase, ...]
    templates: tuple[Template, ...]
    variants: tuple[Variant, ...]
    ledger: Ledger
    islands: tuple[Island, ...] = ()

    def phase(self, name: str) -> Phase:
        """The phase called `name`. Raises KeyError."""
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise KeyError(name)

    @property
    def is_function(self) -> bool:
        """A function of its inputs, and no decoder."""
        return any(phase.entry == "function" for phase in self.phases)


class LaunchDebug(Record, frozen=True):
    """What a launch came from: ONNX nodes, and which ONNX value each written role holds."""

    nodes: tuple[str, ...]
    values: dict[str, str] = {}


class PhaseDebug(Record, frozen=True):
    phase: str
    launches: tuple[LaunchDebug, ...]


class Note(Record, frozen=True):
    """A rewrite that almost fired: where, and what stopped it."""

    rule: str
    node: str
    why: str


class DebugMap(Record, frozen=True):
    """The debug section; may be stripped."""

    phases: tuple[PhaseDebug, ...]
    notes: tuple[Note, ...] = ()


def parameter_block() -> ParameterBlock:
    """The block of format 1.0: 4-byte fields, little-endian, in this order, padded to 64 bytes.

    `start` tokens are in the cache, `length` rows are in this call; then the sampling parameters."""
    kinds: tuple[tuple[FieldType, tuple[str, ...]], ...] = (
        ("int32", ("start", "length", "top_k")),
        ("float32", ("temperature", "top_p", "min_p", "repetition_penalty")),
        ("uint32", ("seed_low", "seed_high")),
    )
    fields: list[ParameterField] = []
    for dtype, names in kinds:
        fields += [ParameterField(name, dtype, 4 * (len(fields) + i)) for i, name in enumerate(names)]
    return ParameterBlock(64, tuple(fields))
