"""Who makes and who reads each buffer of a function's steps, and what a pass needs to make new ones?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from hjgc.compiler.function.choice import Limits, choose_tensor
from hjgc.compiler.kernels import template
from hjgc.compiler.kernels.tiles import NoTemplate
from hjgc.compiler.program import Step, Tensor
from hjgc.compiler.tables import Tables
from hjgc.plan_format import dims
from hjgc.plan_format.elementwise import Node, parse
from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import TensorType, split_roles
from hjgc.plan_format.ops.shapes import numbers
from hjgc.plan_format.sizes import Expression

FIRST = 2
"""The place of the first operand of its own in the expression of a `matmul_map` or a `norm_map`."""


class Flow:
    """The steps of one pass. A step that is dropped or replaced stays what it was to `maker` and `readers`."""

    def __init__(self, steps: Iterable[Step], kept: frozenset[str]) -> None:
        """`kept`: buffers that are read after the last step."""
        self.steps = list(steps)
        self._kept = kept
        self._now: dict[int, Step | None] = {}
        self._makers: dict[str, int] = {}
        self._readers: dict[str, list[int]] = {}
        for number, step in enumerate(self.steps):
            for role, tensor in step.operands.items():
                if tensor.space == "buffer":
                    if role[0] == "y":
                        self._makers[tensor.name] = number
                    else:
                        self._readers.setdefault(buffer_of(tensor), []).append(number)

    def maker(self, tensor: Tensor, op: str = "") -> int | None:
        """The number of the step that makes the buffer, if it is of this op."""
        number = self._makers.get(buffer_of(tensor)) if tensor.space == "buffer" else None
        return None if number is None or (op and self.steps[number].op != op) else number

    def readers(self, tensor: Tensor) -> list[int]:
        """The numbers of the steps that read the buffer, once for each time; -1 for who reads it after the last."""
        name = buffer_of(tensor)
        return self._readers.get(name, []) + ([-1] if name in self._kept else [])

    def is_kept(self, tensor: Tensor) -> bool:
        """Is it read after the last step?"""
        return buffer_of(tensor) in self._kept

    def only_read_by(self, tensor: Tensor, number: int) -> bool:
        return set(self.readers(tensor)) == {number}

    def is_free(self, number: int) -> bool:
        """Has no fusion of this pass taken the step?"""
        return number not in self._now

    def drop(self, *numbers: int) -> None:
        self._now |= dict.fromkeys(numbers)

    def put(self, number: int, step: Step) -> None:
        """Have the step in place of that one."""
        self._now[number] = step

    def result(self) -> Iterator[Step]:
        """What the pass leaves, in order."""
        for number, step in enumerate(self.steps):
            now = self._now.get(number, step)
            if now is not None:
                yield now


class Workshop:
    """What makes new steps possible: names, weights and the kernels that the targets have."""

    def __init__(self, tables: Tables, targets: tuple[str, ...], limits: Limits, unique: Callable[[str], str]) -> None:
        self.tables, self.targets, self.limits = tables, targets, limits
        self.name = unique
        """A name that nothing else has: the given one, or one like it."""

    def buffer(self, like: Tensor, shape: Sequence[Expression]) -> Tensor:
        """A new buffer, named after the one that it replaces."""
        return Tensor(self.name(buffer_of(like)), "buffer", like.dtype, tuple(shape))

    def view(self, tensor: Tensor, shape: Sequence[Expression]) -> Tensor:
        """The tensor in another shape."""
        if tuple(shape) == tuple(tensor.shape):
            return tensor
        if tensor.space != "buffer":
            whole = numbers(shape)
            assert whole is not None, "weights and constants have numbers for sizes"
            return self.tables.reshaped(tensor, whole)
        base = buffer_of(tensor)
        return replace(tensor, name=self.name(f"{base}.view"), shape=tuple(shape), base=base)

    def reading(self, step: Step, renamed: Mapping[str, Tensor]) -> Step:
        """The step with views of new buffers where it read the old."""
        operands = {
            role: self.view(renamed[buffer_of(x)], x.shape) if x.space == "buffer" and buffer_of(x) in renamed else x
            for role, x in step.operands.items()
        }
        return replace(step, operands=operands)

    def has_kernels(self, step: Step) -> bool:
        """Is it a step that its op allows, and can every target run it?"""
        if not _is_legal(step):
            return False
        try:
            for target in self.targets:
                choice = choose_tensor(step, target, self.limits)
                template(choice.template).check(choice.axes)
        except (NoTemplate, CompileError):
            return False
        return True


def _is_legal(step: Step) -> bool:
    """Does the op give these results from these operands?"""
    infer = all_ops()[step.op].infer
    assert infer is not None, "a tensor op"
    reads, writes = split_roles(tuple(step.operands))
    given = [step.operands.get(f"x{i}") for i in range(reads)]
    wanted = [TensorType(y.dtype, tuple(y.shape)) for y in (step.operands[f"y{i}"] for i in range(writes))]
    try:
        found = infer([None if x is None else TensorType(x.dtype, tuple(x.shape)) for x in given], wanted,
                      step.attributes)  # fmt: skip
    except ValueError:
        return False
    return [(t.dtype, dims.product(t.shape)) for t in found] == [(t.dtype, dims.product(t.shape)) for t in wanted]


def expression_of(step: Step) -> tuple[list[Tensor], Node]:
    """The operands of an elementwise step, and what it computes of them."""
    inputs = [step.operands[f"x{i}"] for i in range(len(step.operands) - 1)]
    return inputs, parse(str(step.attributes["expression"]), tuple(tensor.dtype for tensor in inputs))


def buffer_of(tensor: Tensor) -> str:
    """The name of the buffer that a tensor is, or is a view of."""
    return tensor.base or tensor.name


def joined_nodes(*steps: Step) -> tuple[str, ...]:
    """The ONNX nodes of several steps, each once."""
    return tuple(dict.fromkeys(node for step in steps for node in step.nodes))
