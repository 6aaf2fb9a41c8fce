"""Which launches of tensor ops are compared with what the ops mean, and how close must they come?

A case is a step with open sizes, or numbers, and data made from a seed. Its kernel is chosen as the compiler chooses
it, and run for each of a few values of the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hjgc.compiler.function.choice import choose_tensor
from hjgc.compiler.kernels import template
from hjgc.compiler.kernels.prefill_choice import Choice
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import TensorType
from hjgc.plan_format.sizes import Expression, Size, bounds, evaluate
from hjgc.plan_format.verify_kernel import GRID_LIMITS

Shape = tuple[int | str, ...]
Sizes = Mapping[str, int]
Grid = tuple[int, int, int]
Launch = Callable[[str, Mapping[str, Any], Grid, list[Any]], None]
"""Runs a template with these axes over a grid; the arguments in the template's order, None for those left out."""
MOST = 64
GUARD = 64
TOLERANCES = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-5, torch.float64: 1e-11}


@dataclass(frozen=True)
class Given:
    """An operand: its type and shape, and, if not any numbers will do, the lowest and one past the highest."""

    dtype: Any
    shape: Shape
    between: tuple[float, float] | None = None


@dataclass(frozen=True)
class Case:
    """`results` are the shapes that the plan says, where the op may choose them; `sizes` the values that are tried;
    `device` leaves it to one: Triton's interpreter cannot run it, or not soon. `most` is the largest that a size may
    be."""

    name: str
    op: str
    inputs: tuple[Given, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    results: tuple[Given, ...] = ()
    sizes: tuple[Sizes, ...] = ({},)
    device: bool = False
    most: int = MOST
    summed: bool = False


def step_of(case: Case) -> Step:
    infer = all_ops()[case.op].infer
    assert infer is not None
    types = [TensorType(dtype_name(given.dtype), shape_of(given.shape)) for given in case.inputs]
    claimed = [TensorType(dtype_name(given.dtype), shape_of(given.shape)) for given in case.results]
    written = infer(types, claimed, case.attributes)
    operands = {f"x{i}": Tensor(f"x{i}", "buffer", entry.dtype, entry.shape) for i, entry in enumerate(types)}
    operands |= {f"y{i}": Tensor(f"y{i}", "buffer", entry.dtype, entry.shape) for i, entry in enumerate(written)}
    return Step(case.name, case.op, operands, dict(case.attributes))


def shape_of(shape: Shape) -> tuple[Expression, ...]:
    return tuple(Size(axis) if isinstance(axis, str) else axis for axis in shape)


def dtype_name(dtype: torch.dtype) -> Any:
    return str(dtype).removeprefix("torch.")


def choose(case: Case, target: str = "sm_90") -> Choice:
    """The choice of the compiler, once its axes are found legal."""
    ranges = {name: (0, case.most) for sizes in case.sizes for name in sizes}
    choice = choose_tensor(step_of(case), target, lambda size: bounds(size, ranges))
    template(choice.template).check(choice.axes)
    return choice


def check(case: Case, launch: Launch, device: str, *, pdl: bool) -> None:
    """Raises AssertionError where a result is not what the op means, or anything else was written."""
    step, choice = step_of(case), choose(case, "sm_90" if pdl else "sm_80")
    for sizes in case.sizes:
        inputs = [random(given, sizes, i) for i, given in enumerate(case.inputs)]
        wanted = [empty(step.operands[role], sizes) for role in sorted(step.operands) if role[0] == "y"]
        all_ops()[case.op].reference(inputs, wanted, **case.attributes)
        found = run(case, choice, inputs, wanted, sizes, launch, device)
        for right, (result, guard) in zip(wanted, found, strict=True):
            tolerance = TOLERANCES.get(right.dtype, 0.0)
            pair = (result.sum(0), right.sum(0)) if case.summed else (result, right)
            torch.testing.assert_close(*pair, rtol=tolerance, atol=tolerance, equal_nan=True)
            assert bool((guard == 85).all()), f"{case.name} wrote past its result"


def run(
    case: Case,
    choice: Choice,
    inputs: Sequence[Any],
    results: Sequence[Any],
    sizes: Sizes,
    launch: Launch,
    device: str,
) -> list[tuple[Any, Any]]:
    """Each result, and the bytes that lie behind it."""
    declared, letters = template(choice.template), choice.letters
    assert letters is not None
    x, y, z = (evaluate(part, sizes) for part in declared.grid(letters, choice.axes))
    assert all(1 <= part <= limit for part, limit in zip((x, y, z), GRID_LIMITS, strict=True))
    memory = [torch.full((right.numel() * right.itemsize + GUARD,), 85, dtype=torch.uint8) for right in results]
    memory = [buffer.to(device) for buffer in memory]
    pairs = list(zip(memory, results, strict=True))
    operands = {f"x{i}": tensor.to(device) for i, tensor in enumerate(inputs)}
    operands |= {f"y{i}": buffer[:-GUARD].view(right.dtype) for i, (buffer, right) in enumerate(pairs)}
    arguments: list[Any] = []
    for parameter in declared.parameters:
        if not parameter.is_present(choice.axes):
            arguments.append(None)
        elif parameter.source == "size":
            arguments.append(evaluate(letters[parameter.name], sizes))
        elif parameter.source == "attribute":
            arguments.append(case.attributes[parameter.name])
        else:
            kind = getattr(torch, str(choice.axes.get(parameter.dtype, parameter.dtype)))
            arguments.append(operands[choice.roles.get(parameter.name, parameter.name)].view(kind))
    launch(choice.template, choice.axes, (x, y, z), arguments)
    return [
        (buffer[:-GUARD].view(right.dtype).reshape(right.shape).cpu(), buffer[-GUARD:].cpu()) for buffer, right in pairs
    ]


def empty(tensor: Tensor, sizes: Sizes) -> Any:
    shape = [evaluate(axis, sizes) for axis in tensor.shape]
    return torch.zeros(shape, dtype=getattr(torch, tensor.dtype))


def random(given: Given, sizes: Sizes, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in given.shape]
    low, high = given.between or (-20, 20)
    if given.dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if given.dtype.is_floating_point:
        spread = torch.randn if given.between is None else torch.rand
        values = spread(shape, generator=generator, dtype=torch.float64)
        return (values if given.between is None else low + (high - low) * values).to(given.dtype)
    low = max(int(low), torch.iinfo(given.dtype).min)
    return torch.randint(low, int(high), shape, generator=generator).to(given.dtype)


F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
I64, I32, I16, I8, U8, BOOL = torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool
A, B = {"a": 3, "b": 5}, {"a": 9, "b": 40}
NONE = {"a": 0, "b": 7}
OPEN = (A, B, NONE)
LONG = ({"a": 2500},)


def elementwise(name: str, expression: str, *inputs: Given, **more: Any) -> Case:
    return Case(f"elementwise {name}", "elementwise", inputs, {"expression": expression}, **more)


def moving(name: str, op: str, *inputs: Given, **more: Any) -> Case:
    results = more.pop("results", ())
    extra = {key: more.pop(key) for key in ("sizes", "device", "most") if key in more}
    return Case(f"{op} {name}", op, inputs, more, results=results, **extra)


SILU = "mul(x0, sigmoid(x0))"
ELEMENTWISE = (
    elementwise("of one shape", "add(mul(x0, x1), float32:0.5)", Given(F32, (7, 48)), Given(F32, (7, 48))),
    elementwise("of open sizes", SILU, Given(F16, ("a", "b", 24)), sizes=OPEN),
    elementwise("with a bias", "add(x0, x1)", Given(F16, ("a", 48)), Given(F16, (48,)), sizes=OPEN),
    elementwise("with an odd bias", "add(x0, x1)", Given(F32, ("a", 5)), Given(F32, (5,)), sizes=OPEN),
    elementwise("with a scalar", "mul(x0, x1)", Given(F32, ("a", "b")), Given(F32, ()), sizes=OPEN),
    elementwise("with a column", "sub(x0, x1)", Given(F32, ("a", "b")), Given(F32, ("a", 1)), sizes=OPEN),
    elementwise(
        "of masks", "add(x0, where(x1, float32:0, float32:-inf))",
        Given(F32, ("a", 2, "b", "b")), Given(BOOL, ("a", 1, 1, "b")), sizes=({"a": 2, "b": 5}, NONE),
    ),
    elementwise(
        "of an outer product", "eq(x0, x1)", Given(I64, ("a", 1, 3), (0, 3)), Given(I64, (1, "b", 1), (0, 3)),
        sizes=OPEN,
    ),
    elementwise("of one number", "neg(x0)", Given(F32, ())),
    elementwise("to int64", "cast.int64(x0)", Given(F32, ("a",)), sizes=OPEN),
    elementwise("to bool", "cast.bool(x0)", Given(I32, ("a", 3), (-1, 2)), sizes=OPEN),
    elementwise("of truths", "and(not(x0), xor(x0, x1))", Given(BOOL, ("a", 9)), Given(BOOL, ("a", 9)), sizes=OPEN),
    elementwise("of bytes", "where(lt(x0, uint8:9), uint8:200, add(x0, uint8:250))", Given(U8, (9, 11), (0, 20))),
    elementwise("of int64", "div(x0, x1)", Given(I64, (33,)), Given(I64, (33,), (1, 9))),
    elementwise("of whole remainders", "mod(x0, x1)", Given(I32, (33,)), Given(I32, (33,), (1, 9))),
    elementwise(
        "of eight", "add(add(add(x0, x1), add(x2, x3)), add(add(x4, x5), add(x6, x7)))",
        *(Given(F32, ("a", 8) if i % 2 else (8,)) for i in range(8)), sizes=OPEN,
    ),
    elementwise("in float64", "exp(mul(x0, x1))", Given(F64, ("a", 5)), Given(F64, (5,)), sizes=OPEN),
    elementwise("in bfloat16", SILU, Given(BF16, ("a", 24)), sizes=OPEN),
    elementwise(
        "of the library", "add(tanh(x0), pow(abs(x0), float32:1.5))", Given(F32, ("a", 8)), sizes=OPEN, device=True,
    ),
    elementwise(
        "that is a GELU",
        "mul(mul(x0, float32:0.5), add(float32:1.0, erf(mul(x0, float32:0.7071067811865476))))",
        Given(F32, ("a", "b", 24)), sizes=OPEN,
    ),
)  # fmt: skip
MOVES = (
    moving("in front", "expand", Given(F16, (1, 5)), results=(Given(F16, ("a", 3, 5)),), sizes=OPEN),
    moving("inside", "expand", Given(BOOL, ("a", 1, 4)), results=(Given(BOOL, ("a", "b", 4)),), sizes=OPEN),
    moving("of one number", "expand", Given(I64, ()), results=(Given(I64, ("a",)),), sizes=OPEN),
    moving(
        "of patches", "unfold", Given(F16, ("a", 3, 12, 8)), kernel=(4, 4), strides=(4, 4), dilations=(1, 1),
        sizes=OPEN,
    ),
    moving(
        "of windows that overlap", "unfold", Given(F32, (2, 3, 7, 6)), kernel=(3, 2), strides=(2, 1), dilations=(1, 2),
    ),
    moving(
        "along an open axis", "unfold", Given(I8, (1, 5, "b")), kernel=(1,), strides=(1,), dilations=(1,),
        sizes=({"b": 1}, {"b": 40}),
    ),
    moving(
        "of a volume", "unfold", Given(BF16, (1, 2, 4, 5, 3)), kernel=(2, 2, 2), strides=(1, 2, 1),
        dilations=(2, 1, 1),
    ),
    moving("of heads", "transpose", Given(F16, ("a", "b", 3, 8)), axes=(0, 2, 1, 3), sizes=OPEN),
    moving("of keys", "transpose", Given(F16, ("a", 3, "b", 8)), axes=(0, 1, 3, 2), sizes=OPEN),
    moving("of a matrix", "transpose", Given(F32, (70, 45)), axes=(1, 0)),
    moving("of channels", "transpose", Given(F32, (2, 3, 5, 7)), axes=(0, 2, 3, 1)),
    moving("from front to back", "transpose", Given(I64, ("a", "b", 3)), axes=(2, 1, 0), sizes=OPEN),
    moving("of bfloat16", "transpose", Given(BF16, ("a", 5)), axes=(1, 0), sizes=OPEN),
    moving(
        "of columns", "slice", Given(F16, ("a", 24)), starts=(0, 8), steps=(1, 1), results=(Given(F16, ("a", 8)),),
        sizes=OPEN,
    ),
    moving(
        "in reverse", "slice", Given(F32, (6, 9)), starts=(-1, -2), steps=(-1, -3), results=(Given(F32, (6, 3)),),
    ),
    moving(
        "of the last row", "slice", Given(F32, ("a", "b", 4)), starts=(0, -1, 0), steps=(1, 1, 1),
        results=(Given(F32, ("a", 1, 4)),), sizes=(A, B),
    ),
    moving(
        "in steps", "slice", Given(U8, (5, 12)), starts=(1, 2), steps=(2, 4), results=(Given(U8, (2, 3)),),
    ),
    moving("with a number", "fill", value="float16:1.5", results=(Given(F16, ("a", 3)),), sizes=OPEN),
    moving("with truth", "fill", value="bool:1", results=(Given(BOOL, (5, 3)),)),
    moving("with one number", "fill", value="int64:-7", results=(Given(I64, ()),)),
    moving("of floats", "bitcast", Given(F32, ("a", 3)), results=(Given(I32, ("a", 3)),), sizes=OPEN),
    moving("of positions", "iota", start=-3, step=2, results=(Given(I64, ("a",)),), sizes=OPEN),
    moving("of few", "iota", start=1, step=-1, results=(Given(I32, (70,)),)),
    moving("that is causal", "triangle", Given(F32, ("a", "b", "b")), upper=False, sizes=OPEN),
    moving("past a diagonal", "triangle", Given(BOOL, (2, 5, 7)), Given(I64, (), (1, 2)), upper=True),
    moving("of whole numbers", "triangle", Given(I64, (6, 4)), Given(I64, (1,), (-2, -1)), upper=False),
)  # fmt: skip
TAKEN = (
    moving("of rows", "gather", Given(F16, (30, 24)), Given(I64, ("a", "b"), (-30, 30)), axis=0, sizes=OPEN),
    moving("inside", "gather", Given(F32, ("a", 6, 5)), Given(I32, (4,), (-6, 6)), axis=1, sizes=OPEN),
    moving("of one", "gather", Given(BF16, ("a", "b", 8)), Given(I64, (), (-5, 5)), axis=1, sizes=(A, B)),
    moving("at the end", "gather", Given(BOOL, (3, 7)), Given(I64, (2, 2), (0, 7)), axis=-1),
    moving("in rows", "gather_elements", Given(F32, ("a", 7)), Given(I64, ("a", 3), (-7, 7)), axis=1, sizes=OPEN),
    moving("of few", "gather_elements", Given(I64, (5, 7)), Given(I64, (9, 4), (-5, 5)), axis=0),
    moving("of numbers", "gather_nd", Given(F32, (4, 5)), Given(I64, ("a", 2), (-4, 4)), batch=0, sizes=OPEN),
    moving("of slices", "gather_nd", Given(F16, (4, 5, 8)), Given(I64, ("a", 3, 1), (0, 4)), batch=0, sizes=OPEN),
    moving("in batches", "gather_nd", Given(F32, ("a", 5, 6)), Given(I64, ("a", 2, 1), (0, 5)), batch=1, sizes=OPEN),
    moving("of caches", "concat", Given(F16, (2, "a", 8)), Given(F16, (2, "b", 8)), axis=1, sizes=OPEN),
    moving("of many", "concat", *(Given(F32, ("a", i)) for i in range(1, 9)), axis=-1, sizes=OPEN),
    moving("of one", "concat", Given(BOOL, (5, 3)), axis=0),
    moving("of lists", "concat", Given(I64, (1,)), Given(I64, ("a",)), Given(I64, (0,)), axis=0, sizes=OPEN),
    moving(
        "with 0", "pad", Given(F16, ("a", 5, 8)), mode="constant", before=(0, 1, 0),
        results=(Given(F16, ("a", 8, 8)),), sizes=OPEN,
    ),
    moving(
        "with a number, and less", "pad", Given(F32, (4, 9)), Given(F32, ()), mode="constant", before=(2, -3),
        results=(Given(F32, (7, 5)),),
    ),
    *(
        moving(
            f"that is {mode}", "pad", Given(F32, (2, 4, 6)), mode=mode, before=(0, 2, 3),
            results=(Given(F32, (2, 7, 11)),),
        )
        for mode in ("edge", "reflect", "wrap")
    ),
)  # fmt: skip
KINDS = ("sum", "mean", "max", "min", "prod", "sum_square", "l1", "l2", "log_sum", "log_sum_exp")
REDUCED = (
    *(
        moving(
            f"by {kind}", "reduce", Given(F32, ("a", 24), (0.5, 2)), kind=kind, axes=(-1,), keep=True, sizes=OPEN
        )
        for kind in KINDS
    ),
    moving("of first axes", "reduce", Given(F32, ("a", "b", 12)), kind="sum", axes=(0, 1), keep=False, sizes=OPEN),
    moving("inside", "reduce", Given(F16, ("a", 5, 12)), kind="mean", axes=(1,), keep=False, sizes=OPEN),
    moving("here and there", "reduce", Given(F32, (3, 4, 5, 6)), kind="sum", axes=(0, 2), keep=True),
    moving("of all", "reduce", Given(F32, ("a", "b")), kind="l2", axes=(0, 1), keep=False, sizes=OPEN),
    moving("of none", "reduce", Given(F32, (3, 5)), kind="sum_square", axes=(), keep=False),
    moving("of whole numbers", "reduce", Given(I64, ("a", 9)), kind="sum", axes=(1,), keep=False, sizes=OPEN),
    moving("of nothing", "reduce", Given(I8, (3, "a")), kind="max", axes=(1,), keep=False, sizes=OPEN),
    moving("of truths", "reduce", Given(BOOL, (4, "a")), kind="min", axes=(1,), keep=False, sizes=OPEN),
    moving("of bytes", "reduce", Given(I8, (4, 70)), kind="prod", axes=(1,), keep=False),
    moving("of infinities", "reduce", Given(F32, (2, 3), (-3e38, 3e38)), kind="log_sum_exp", axes=(1,), keep=False),
    moving("of long rows", "reduce", Given(F32, (2, 20000), (0, 1)), kind="log_sum_exp", axes=(1,), keep=False),
    moving("of long columns", "reduce", Given(F32, (300, 40)), kind="max", axes=(0,), keep=False),
    moving("in float64", "reduce", Given(F64, (3, 50)), kind="log_sum_exp", axes=(1,), keep=False),
    moving("in bfloat16", "reduce", Given(BF16, (3, 50)), kind="mean", axes=(1,), keep=False),
)  # fmt: skip
CUMULATED = {"exclusive": False, "reverse": False}
FOUND = {"kind": "max", "keep": False, "last": False}
ALONG = (
    moving("of rows", "softmax", Given(F16, ("a", 2, "b")), axis=-1, log=False, sizes=OPEN),
    moving("of short rows", "softmax", Given(F32, ("a", 3)), axis=-1, log=True, sizes=OPEN),
    moving("inside", "softmax", Given(F32, ("a", 7, 10)), axis=1, log=False, sizes=OPEN),
    moving("of long rows", "softmax", Given(F32, (2, "a")), axis=1, log=False, sizes=LONG, most=1 << 20),
    moving("of long rows, log", "softmax", Given(F32, (3, "a"), (-9, 9)), axis=1, log=True, sizes=OPEN, most=1 << 20),
    moving("of long columns", "softmax", Given(F32, ("a", 40)), axis=0, log=False, sizes=OPEN, most=1 << 20),
    moving("of a vocabulary", "softmax", Given(F32, (2, 50257)), axis=1, log=True, device=True),
    moving("in float64", "softmax", Given(F64, ("a", 9)), axis=1, log=False, sizes=OPEN),
    moving("in bfloat16", "softmax", Given(BF16, ("a", 9)), axis=1, log=False, sizes=OPEN),
    moving("of floats", "arg_reduce", Given(F32, ("a", 33)), axis=1, **FOUND, sizes=(A, NONE)),
    moving("of equal ones", "arg_reduce", Given(I64, (5, 33), (0, 3)), axis=1, **FOUND),
    moving("of the last", "arg_reduce", Given(I32, (33, 5), (0, 3)), axis=0, **FOUND | {"last": True}),
    moving("of the smallest", "arg_reduce", Given(F16, ("a", 9)), axis=-1, **FOUND | {"kind": "min"}, sizes=(A, NONE)),
    moving("of bytes", "arg_reduce", Given(U8, (5, 9), (0, 4)), axis=1, **FOUND | {"kind": "min", "keep": True}),
    moving(
        "of long rows", "arg_reduce", Given(F32, (1, "a")), axis=1, **FOUND | {"last": True},
        sizes=LONG, most=1 << 20,
    ),
    moving("of a vocabulary", "arg_reduce", Given(F32, (3, 50257)), axis=1, **FOUND, device=True),
    moving("of positions", "cumulate", Given(I64, ("a", "b"), (0, 2)), kind="sum", axis=1, **CUMULATED, sizes=OPEN),
    moving(
        "of those before", "cumulate", Given(F32, (9, "a")), kind="sum", axis=0,
        **CUMULATED | {"exclusive": True}, sizes=OPEN,
    ),
    moving(
        "from the end", "cumulate", Given(I32, (9, 7), (-2, 3)), kind="prod", axis=-1, exclusive=True, reverse=True
    ),
    moving(
        "of long rows", "cumulate", Given(I8, (1, "a")), kind="sum", axis=1, exclusive=False, reverse=True,
        sizes=LONG, most=1 << 20,
    ),
    moving(
        "of experts", "top_k", Given(F32, ("a", 8)), axis=-1, largest=True,
        results=(Given(F32, ("a", 2)), Given(I64, ("a", 2))), sizes=OPEN,
    ),
    moving(
        "of the smallest", "top_k", Given(I32, (9, 5), (0, 5)), axis=0, largest=False,
        results=(Given(I32, (3, 5)), Given(I64, (3, 5))),
    ),
    moving(
        "of long columns", "top_k", Given(F16, (1500, 20), (-1, 1)), axis=0, largest=True,
        results=(Given(F16, (4, 20)), Given(I64, (4, 20))), device=True,
    ),
)  # fmt: skip
SCATTERED = (
    moving(
        "in rows", "scatter_elements", Given(F32, ("a", 9)), Given(I64, ("a", 3), (-9, 9)), Given(F32, ("a", 3)),
        axis=1, reduction="add", sizes=OPEN,
    ),
    moving(
        "of few", "scatter_elements", Given(F16, (4, 5)), Given(I32, (3, 2), (-4, 4)), Given(F16, (3, 2)),
        axis=0, reduction="none",
    ),
    moving(
        "of the largest", "scatter_elements", Given(I64, (30,)), Given(I64, ("a",), (0, 30)), Given(I64, ("a",)),
        axis=0, reduction="max", sizes=OPEN,
    ),
    moving(
        "of rows", "scatter_nd", Given(F32, ("a", 5)), Given(I64, (4, 1), (-3, 3)), Given(F32, (4, 5)),
        reduction="none", sizes=(A, B),
    ),
    moving(
        "of elements", "scatter_nd", Given(I8, (3, 4)), Given(I64, ("a", 2), (-3, 3)), Given(I8, ("a",)),
        reduction="mul", sizes=OPEN,
    ),
    moving(
        "of truths", "scatter_nd", Given(BOOL, (3, 4, 2)), Given(I64, (5, 2), (0, 3)), Given(BOOL, (5, 2)),
        reduction="none",
    ),
)  # fmt: skip
ROTATED = (
    moving(
        "of heads", "rotate", Given(F16, ("a", 2, "b", 8)), Given(F16, ("a", "b", 3), (-1, 1)),
        Given(F16, ("a", "b", 3), (-1, 1)), width=6, interleaved=False, heads_first=True, sizes=OPEN,
    ),
    moving(
        "by positions", "rotate", Given(F32, ("a", "b", 2, 8)), Given(F32, (70, 4)), Given(F32, (70, 4)),
        Given(I64, ("a", "b"), (0, 70)), width=8, interleaved=True, heads_first=False, sizes=OPEN,
    ),
    moving(
        "of a cache", "write_rows", Given(F16, (2, 3, 9, 4)), Given(F16, (2, 3, "a", 4)), Given(I64, (2,), (0, 5)),
        axis=-2, circular=False, sizes=({"a": 3}, {"a": 0}),
    ),
    moving(
        "of a ring", "write_rows", Given(F32, (3, 9, 4)), Given(F32, (3, 4, 4)), Given(I64, (3,), (5, 9)),
        axis=1, circular=True,
    ),
    moving("from the front", "write_rows", Given(BOOL, (3, 9)), Given(BOOL, (3, 4)), axis=1, circular=False),
    moving("of open sizes", "shape_of", Given(F32, ("a", 7, "b")), start=0, end=3, sizes=OPEN),
    moving("of none", "shape_of", Given(F32, (4, 7)), start=1, end=1),
)  # fmt: skip
LIBRARY = (
    "tan", "sin", "cos", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "atanh", "round", "trunc", "floor",
    "ceil", "erf", "sigmoid", "softplus", "log", "sqrt", "rsqrt",
)  # fmt: skip
FUNCTIONS = (
    *(
        elementwise(f"{name} in {dtype_name(dtype)}", f"{name}(x0)", Given(dtype, (50,), (0.1, 0.9)), device=True)
        for name in LIBRARY
        for dtype in (F32, F64)
    ),
    elementwise("acosh", "acosh(x0)", Given(F32, (50,), (1.5, 9)), device=True),
    elementwise("remainders", "mod(x0, x1)", Given(F32, (50,), (-9, 9)), Given(F32, (50,), (1, 2)), device=True),
    elementwise("shifted", "shl(shr(x0, x1), x1)", Given(U8, (50,), (0, 255)), Given(U8, (50,), (0, 7)), device=True),
    elementwise("mixed bits", "bitxor(bitand(x0, x1), bitnot(x1))", Given(I16, (50,)), Given(I16, (50,)), device=True),
)
LARGE = (
    elementwise("of a layer", SILU, Given(F16, (8, 512, 768)), device=True),
    elementwise("of a layer with a bias", "add(x0, x1)", Given(F16, (4096, 768)), Given(F16, (768,)), device=True),
    elementwise(
        "of scores", "add(x0, x1)", Given(F16, ("a", 12, "b", "b")), Given(F16, ("a", 1, 1, "b")),
        sizes=({"a": 3, "b": 200},), most=512, device=True,
    ),
    elementwise("of many rows", "add(x0, x1)", Given(F32, (300000, 3)), Given(F32, (300000, 1)), device=True),
    moving("of many heads", "transpose", Given(F16, (4, 128, 12, 64)), axes=(0, 2, 1, 3), device=True),
    moving("of many keys", "transpose", Given(F16, (4, 12, 130, 64)), axes=(0, 1, 3, 2), device=True),
    moving(
        "of an image", "unfold", Given(F16, (1, 3, 224, 224)), kernel=(16, 16), strides=(16, 16), dilations=(1, 1),
        device=True,
    ),
    moving(
        "of channels", "unfold", Given(F16, (1, 64, 58, 58)), kernel=(3, 3), strides=(1, 1), dilations=(1, 1),
        device=True,
    ),
    moving("of an image", "transpose", Given(F32, (2, 3, 224, 224)), axes=(0, 2, 3, 1), device=True),
    moving("of a table", "gather", Given(F16, (30000, 768)), Given(I64, (8, 64), (0, 30000)), axis=0, device=True),
    moving("of scores", "softmax", Given(F16, (2, 12, 200, 200)), axis=-1, log=False, device=True),
    moving("of many rows", "reduce", Given(F16, (4096, 768)), kind="mean", axes=(-1,), keep=True, device=True),
    moving("of a sequence", "reduce", Given(F32, (8, 128, 768)), kind="mean", axes=(1,), keep=False, device=True),
    moving(
        "of many experts", "top_k", Given(F32, (1000, 64)), axis=-1, largest=True,
        results=(Given(F32, (1000, 8)), Given(I64, (1000, 8))), device=True,
    ),
)  # fmt: skip
CASES = (*ELEMENTWISE, *MOVES, *TAKEN, *REDUCED, *ALONG, *SCATTERED, *ROTATED, *FUNCTIONS, *LARGE)
