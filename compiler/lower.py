"""How must the steps of a phase change so that a GPU's kernels can run them?

For many rows, products are cut into parts that a `join` adds up; the join also normalises for the product that comes
next, so that no product has to. For one row, steps stay as they are. Kernels that need memory of their own get it here:
scratch that is written before it is read, and counters that they leave as zero.
"""

from __future__ import annotations

import dataclasses

from hjgc.compiler.kernels.prefill_choice import range_ends, splits
from hjgc.compiler.kernels.tiles import choose_decode, scratch
from hjgc.compiler.program import Network, Program, Step, Tensor, scalar
from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import bind_axes
from hjgc.plan_format.sizes import Expression
from hjgc.plan_format.structs import State

NORMALISED = ("attention_inputs", "gated_linear")
"""Ops that take rows normalised before, if told so by the absence of a `norm_weight`."""


def lower(network: Network, targets: tuple[str, ...]) -> Network:
    """The network for these targets; the same one if no GPU is among them."""
    gpus = tuple(target for target in targets if target != "cpu")
    if not gpus or any(program.function for program in network.programs):
        return network
    lowering = _Lowering(network, gpus)
    programs = tuple(map(lowering.program, network.programs))
    return dataclasses.replace(network, states=tuple(lowering.states), programs=programs)


def most_rows(program: Program) -> int | None:
    """The most rows of a call; None for a phase of one row."""
    return next((size.high for size in program.sizes if size.name == "tokens"), None)


class _Lowering:
    """Lowers every phase; `states` are the network's and those that kernels need besides."""

    def __init__(self, network: Network, gpus: tuple[str, ...]) -> None:
        self._dtypes, self._gpus = network.dtypes, gpus
        self.states = list(network.states)

    def program(self, program: Program) -> Program:
        rows = most_rows(program)
        steps = program.steps if rows is None else _Prompt(program.steps, rows, self._gpus).run()
        needy = {"sample"} if rows is not None else {"sample", "attention"}
        steps = tuple(self._with_scratch(step) if step.op in needy else step for step in steps)
        return dataclasses.replace(program, steps=steps)

    def _with_scratch(self, step: Step) -> Step:
        """The step with the memory that the neediest of its kernels wants."""
        wanted: dict[str, Tensor] = {}
        for target in self._gpus:
            _, axes = choose_decode(step.op, step_dims(step), self._dtypes, step.operands, target)
            for role, (dtype, shape) in scratch(step.op, axes).items():
                if role == "counters":
                    wanted[role] = self._counters(shape)
                elif role not in wanted or wanted[role].shape < shape:
                    wanted[role] = Tensor(f"{step.name}.{role}", "buffer", dtype, shape)
        return dataclasses.replace(step, operands=step.operands | wanted)

    def _counters(self, shape: tuple[int, ...]) -> Tensor:
        """Shared by all launches that need as many, since launches follow each other."""
        name = f"counters.{shape[0]}"
        place = next((i for i, state in enumerate(self.states) if state.name == name), len(self.states))
        if place == len(self.states):
            self.states.append(State(name, "counters", "int32", shape, shape[0] * ITEM_BYTES["int32"]))
        return Tensor(name, "state", "int32", shape, place)


def step_dims(step: Step) -> dict[str, int]:
    """The letters of the op's axes, but for those that depend on the rows, and what decides how a cache is used."""
    shapes = {role: tensor.shape for role, tensor in step.operands.items()}
    bound = bind_axes(all_ops()[step.op], shapes)
    chosen = {name: int(scalar(step, name)) for name in ("window", "ring") if name in step.attributes}
    return {letter: size for letter, size in bound.items() if isinstance(size, int)} | chosen


class _Prompt:
    """Rewrites the steps of a phase of many rows, in order."""

    def __init__(self, steps: tuple[Step, ...], rows: int, gpus: tuple[str, ...]) -> None:
        self._source, self._rows, self._gpus = steps, rows, gpus
        self._steps: list[Step] = []
        self._normal: dict[tuple[str, str, float], Tensor] = {}

    def run(self) -> tuple[Step, ...]:
        for step in self._source:
            if step.op == "linear":
                self._add_parts(step)
            elif step.op in NORMALISED and "norm_weight" in step.operands:
                self._add_normalised(step)
            else:
                self._steps.append(step)
        return tuple(self._steps)

    def _add_parts(self, step: Step) -> None:
        """A product as parts and their join."""
        weight, y = step.operands["weight"], step.operands["y"]
        outputs, columns = _number(weight.shape[0]), _number(weight.shape[1])
        rows = self._rows
        most = max(splits(g, end, outputs, columns, rows) for g in self._gpus for end in range_ends(g, rows))
        parts = Tensor(f"{step.name}.parts", "buffer", "float32", (most, self._rows, outputs))
        product = {"x": step.operands["x"], "weight": weight, "parts": parts}
        self._steps.append(Step(f"{step.name}.parts", "linear_parts", product, {}, step.nodes))
        added = {role: step.operands[role] for role in ("bias", "residual") if role in step.operands}
        joined = {"parts": parts, **added, "y": y}
        self._steps.append(Step(step.name, "join", joined, {"epsilon": 0.0}, step.nodes, step.values))

    def _add_normalised(self, step: Step) -> None:
        """The step without its norm, which the maker of its rows does, or a step of its own."""
        operands = dict(step.operands)
        x, gain = operands["x"], operands.pop("norm_weight")
        epsilon = scalar(step, "epsilon")
        key = (x.name, gain.name, epsilon)
        if key not in self._normal:
            self._normal[key] = self._normalise(x, gain, epsilon, step)
        operands["x"] = self._normal[key]
        self._steps.append(dataclasses.replace(step, operands=operands))

    def _normalise(self, x: Tensor, gain: Tensor, epsilon: float, user: Step) -> Tensor:
        normal = Tensor(f"{user.name}.normal", "buffer", x.dtype, x.shape)
        place = next((i for i, made in enumerate(self._steps) if made.operands.get("y") == x), None)
        maker = None if place is None else self._steps[place]
        if place is not None and maker is not None and maker.op == "join" and "normal" not in maker.operands:
            operands = {**maker.operands, "norm_weight": gain, "normal": normal}
            self._steps[place] = dataclasses.replace(maker, operands=operands, attributes={"epsilon": epsilon})
            return normal
        operands = {"x": x, "weight": gain, "y": normal}
        self._steps.append(Step(f"{user.name}.norm", "rms_norm", operands, {"epsilon": epsilon}, user.nodes))
        return normal


def _number(size: Expression) -> int:
    assert isinstance(size, int), "all axes but the rows are numbers"
    return size
