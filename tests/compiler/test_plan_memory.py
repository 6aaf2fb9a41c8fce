"""Do two activations that live at the same time ever share a byte, and is memory reused when they do not?"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from hjgc.compiler.plan_memory import ALIGNMENT, find_overlap, plan_memory
from hjgc.compiler.program import Program, Step, Tensor
from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.sizes import Size, SizeDeclaration
from hjgc.plan_format.structs import Buffer

SEEDS = range(120)
ROWS = 12


@dataclass(frozen=True)
class Use:
    first: int
    last: int
    bytes: int


def random_program(seed: int) -> Program:
    """Steps that each write one or two tensors and read some of those written before, near or far."""
    rng = random.Random(seed)
    tensors: list[Tensor] = []
    steps: list[Step] = []
    for number in range(rng.randint(1, 60)):
        operands = {f"in{i}": tensor for i, tensor in enumerate(read_some(rng, tensors))}
        for i in range(rng.randint(1, 2)):
            rows = rng.choice([1, ROWS, Size("tokens")])
            dtype: DType = rng.choice(["float32", "float16"])
            tensors.append(Tensor(f"t{number}.{i}", "buffer", dtype, (rows, rng.choice([1, 7, 64, 160, 1000]))))
            operands[f"out{i}"] = tensors[-1]
        operands["weight"] = Tensor("w", "weight", "float32", (64, 64))
        steps.append(Step(f"step{number}", "any", operands))
    return Program("prefill", (SizeDeclaration("tokens", 1, ROWS, "key"),), (ROWS,), tuple(steps))


def read_some(rng: random.Random, tensors: list[Tensor]) -> list[Tensor]:
    near = tensors[-3:] if rng.random() < 0.8 else tensors
    return rng.sample(near, min(len(near), rng.randint(0, 3)))


def uses(program: Program) -> dict[str, Use]:
    """First and last step and bytes of each activation, told anew from the program."""
    found: dict[str, Use] = {}
    for number, step in enumerate(program.steps):
        for tensor in step.operands.values():
            if tensor.space == "buffer":
                rows, columns = (ROWS if isinstance(axis, Size) else axis for axis in tensor.shape)
                assert isinstance(rows, int) and isinstance(columns, int)
                need = rows * columns * (4 if tensor.dtype == "float32" else 2)
                found[tensor.name] = Use(found[tensor.name].first if tensor.name in found else number, number, need)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_live_activations_never_share_a_byte(seed: int) -> None:
    program = random_program(seed)
    memory = plan_memory(program)
    assert find_overlap(memory.buffers) is None
    owner: dict[tuple[int, int], str] = {}  # (step, block of the arena) -> who lives there then
    for buffer in memory.buffers:
        for step in range(buffer.first, buffer.last + 1):
            for block in range(buffer.offset // ALIGNMENT, -(-(buffer.offset + buffer.bytes) // ALIGNMENT)):
                assert owner.setdefault((step, block), buffer.name) == buffer.name


@pytest.mark.parametrize("seed", SEEDS)
def test_every_activation_has_room_for_its_largest_size_and_lives_as_long_as_it_is_used(seed: int) -> None:
    program = random_program(seed)
    memory = plan_memory(program)
    wanted = uses(program)
    assert {buffer.name: (buffer.first, buffer.last) for buffer in memory.buffers} == {
        name: (use.first, use.last) for name, use in wanted.items()
    }
    assert all(0 <= buffer.bytes - wanted[buffer.name].bytes < ALIGNMENT for buffer in memory.buffers)
    assert all(buffer.offset % ALIGNMENT == 0 for buffer in memory.buffers)
    assert all(buffer.offset >= 0 and buffer.offset + buffer.bytes <= memory.bytes for buffer in memory.buffers)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_arena_is_between_the_fullest_step_and_the_sum_of_all(seed: int) -> None:
    program = random_program(seed)
    memory = plan_memory(program)
    live = [
        sum(buffer.bytes for buffer in memory.buffers if buffer.first <= step <= buffer.last)
        for step in range(len(program.steps))
    ]
    assert max(live) <= memory.bytes <= sum(buffer.bytes for buffer in memory.buffers)


def test_memory_is_reused_a_long_chain_takes_the_room_of_two() -> None:
    tensors = [Tensor(f"t{i}", "buffer", "float32", (64,)) for i in range(51)]
    steps = tuple(Step(f"s{i}", "any", {"x": tensors[i], "y": tensors[i + 1]}) for i in range(50))
    memory = plan_memory(Program("decode", (), (1,), steps))
    assert (memory.bytes, len(memory.buffers)) == (2 * 256, 51)


def test_over_many_programs_most_of_the_memory_is_reused() -> None:
    memories = [plan_memory(random_program(seed)) for seed in SEEDS]
    arenas = sum(memory.bytes for memory in memories)
    assert arenas < 0.5 * sum(buffer.bytes for memory in memories for buffer in memory.buffers)


def buffer(name: str, offset: int, size: int, first: int, last: int) -> Buffer:
    return Buffer(name, "float32", (size // 4,), offset, size, first, last)


@pytest.mark.parametrize(
    ("second", "overlaps"),
    [
        (buffer("b", 1024, 512, 0, 4), False),  # right after it
        (buffer("b", 0, 512, 0, 4), False),  # right before it
        (buffer("b", 512, 512, 5, 9), False),  # the same bytes, later
        (buffer("b", 512, 512, 0, 1), False),  # the same bytes, earlier
        (buffer("b", 512, 512, 4, 9), True),  # the same bytes, the last step shared
        (buffer("b", 512, 512, 0, 2), True),  # the same bytes, the first step shared
        (buffer("b", 1023, 1, 3, 3), True),  # its last byte
        (buffer("b", 511, 2, 3, 3), True),  # its first byte
        (buffer("b", 0, 4096, 3, 3), True),  # around it
        (buffer("b", 600, 4, 3, 3), True),  # inside it
    ],
)
def test_the_checker_finds_a_planted_overlap_and_only_that(second: Buffer, overlaps: bool) -> None:
    first = buffer("a", 512, 512, 2, 4)
    for pair in ((first, second), (second, first)):
        found = find_overlap((buffer("far", 1 << 20, 64, 0, 9), *pair))
        assert (found is not None) == overlaps
        assert found is None or set(found) == {"a", "b"}


@pytest.mark.parametrize("seed", range(40))
def test_the_checker_finds_an_overlap_planted_in_a_real_plan(seed: int) -> None:
    rng = random.Random(1000 + seed)
    buffers = list(plan_memory(random_program(seed)).buffers)
    victim = rng.choice(buffers)
    step = rng.randint(victim.first, victim.last)
    byte = victim.offset + rng.randrange(victim.bytes)
    buffers.insert(rng.randint(0, len(buffers)), buffer("planted", byte, 1, step, step))
    found = find_overlap(tuple(buffers))
    assert found is not None and set(found) == {"planted", victim.name}
