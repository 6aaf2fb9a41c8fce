"""Does each op's reference compute what its formula says, written again in numpy, in float64?"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.attention_inputs import append
from hjgc.plan_format.ops.declaration import STATES, Op, bind_axes
from hjgc.plan_format.sizes import Size

Array = NDArray[np.float64]
ROWS, START, CONTEXT, HIDDEN, SIZE, INNER, VOCABULARY = 5, 3, 16, 24, 8, 20, 33
EPSILON = 1e-3
DIMS = {
    "M": 4,
    "N": 48,
    "H": 16,
    "K": 16,
    "F": 4,
    "D": 8,
    "Q": 4,
    "G": 2,
    "C": 64,
    "V": 32,
    "A": 32,
    "S": 3,
    "R": 8,
    "start": 7,
}
COPIES = {"embedding", "caller_logits", "host_function"}
"""Ops that compute nothing."""


def some(r: np.random.Generator, *shape: int) -> Array:
    return r.standard_normal(shape).astype(np.float32).astype(np.float64)


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float32)


def close(found: torch.Tensor, expected: Array) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=2e-5)


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def softmax(x: Array) -> Array:
    grown = np.exp(x - x.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


@pytest.fixture
def r() -> np.random.Generator:
    return np.random.default_rng(20261121)


@pytest.mark.parametrize("name", sorted(name for name, op in all_ops().items() if op.infer is None))
def test_an_op_has_a_reference_for_its_roles_and_costs_something(name: str) -> None:
    op = all_ops()[name]
    assert op.name == name
    taken = op.reference.__code__.co_varnames[: op.reference.__code__.co_argcount]
    assert taken == tuple(role.name for role in op.roles)
    assert 0 < op.bytes_moved(DIMS, 2) <= op.bytes_moved(DIMS, 4)
    assert (op.flops(DIMS) == 0) == (name in COPIES)
    assert op.summary


@pytest.mark.parametrize("name", sorted(all_ops()))
def test_what_a_kernel_indexes_by_the_parameter_block_must_be_a_state(name: str) -> None:
    """Caches and the history are indexed by it: their entries (C) are more than any call has rows."""
    for role in all_ops()[name].roles:
        if role.dtype == "cache" or "C" in role.axes or role.name in ("logits", "sampled"):
            assert role.name in STATES


@pytest.mark.parametrize("rows", [1, ROWS])
def test_rms_norm(r: np.random.Generator, rows: int) -> None:
    x, weight, y = some(r, rows, HIDDEN), some(r, HIDDEN), torch.empty(rows, HIDDEN)
    all_ops()["rms_norm"].reference(tensor(x), tensor(weight), y, epsilon=EPSILON)
    close(y, rms_norm(x, weight, EPSILON))


def test_rms_norm_takes_the_mean_of_halves_in_float32(r: np.random.Generator) -> None:
    x = (300 * torch.from_numpy(r.standard_normal((2, 4096)))).to(torch.float16)  # squares past float16
    weight, y = torch.ones(4096), torch.empty(2, 4096, dtype=torch.float16)
    all_ops()["rms_norm"].reference(x, weight, y, epsilon=EPSILON)
    np.testing.assert_allclose(y.double(), rms_norm(x.double().numpy(), np.ones(4096), EPSILON), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_linear(r: np.random.Generator, bias: bool, residual: bool) -> None:
    x, weight, b, rest = some(r, ROWS, HIDDEN), some(r, INNER, HIDDEN), some(r, INNER), some(r, ROWS, INNER)
    y = torch.empty(ROWS, INNER)
    given = tensor(rest)
    all_ops()["linear"].reference(
        tensor(x), tensor(weight), tensor(b) if bias else None, given if residual else None, y
    )
    close(y, x @ weight.T + bias * b + residual * rest)
    assert torch.equal(given, tensor(rest)), "the residual is only read"


@pytest.mark.parametrize("norm", [False, True])
def test_linear_parts_and_their_join_are_a_linear_and_its_norm(r: np.random.Generator, norm: bool) -> None:
    x, weight, b, rest = some(r, ROWS, HIDDEN), some(r, INNER, HIDDEN), some(r, INNER), some(r, ROWS, INNER)
    gain, y, normal = some(r, INNER), torch.empty(ROWS, INNER), torch.empty(ROWS, INNER)
    parts = torch.full((3, ROWS + 2, INNER), torch.nan)
    all_ops()["linear_parts"].reference(tensor(x), tensor(weight), parts)
    ends = (tensor(gain), y, normal) if norm else (None, y, None)
    all_ops()["join"].reference(parts, tensor(b), tensor(rest), *ends, epsilon=EPSILON)
    close(y, x @ weight.T + b + rest)
    if norm:
        close(normal, rms_norm(x @ weight.T + b + rest, gain, EPSILON))


@pytest.mark.parametrize("bias", [False, True])
def test_gated_linear(r: np.random.Generator, bias: bool) -> None:
    x, norm = some(r, ROWS, HIDDEN), some(r, HIDDEN)
    weight, b, y = some(r, 2 * INNER, HIDDEN), some(r, 2 * INNER), torch.empty(ROWS, INNER)
    arguments = (tensor(x), tensor(norm), tensor(weight), tensor(b) if bias else None, y)
    all_ops()["gated_linear"].reference(*arguments, epsilon=EPSILON)
    both = rms_norm(x, norm, EPSILON) @ weight.T + bias * b
    gate, up = both[:, :INNER], both[:, INNER:]
    close(y, gate / (1 + np.exp(-gate)) * up)


@pytest.mark.parametrize("start", [0, START])
def test_embedding_takes_the_rows_of_this_calls_tokens(r: np.random.Generator, start: int) -> None:
    table, y = some(r, VOCABULARY, HIDDEN), torch.empty(ROWS, HIDDEN)
    history = r.integers(0, VOCABULARY, CONTEXT)
    parameters = SimpleNamespace(start=start, length=ROWS)
    all_ops()["embedding"].reference(torch.tensor(history, dtype=torch.int32), tensor(table), parameters, y)
    close(y, table[history[start : start + ROWS]])


def test_rotary_table_counts_positions_from_start() -> None:
    frequencies = np.array([1.0, 0.25, 0.01], np.float32).astype(np.float64)
    cos, sin = torch.empty(ROWS, 3), torch.empty(ROWS, 3)
    all_ops()["rotary_table"].reference(tensor(frequencies), SimpleNamespace(start=START, length=ROWS), cos, sin)
    angles = (START + np.arange(ROWS))[:, None] * frequencies
    close(cos, np.cos(angles))
    close(sin, np.sin(angles))


@pytest.mark.parametrize("bias", [False, True])
def test_vocabulary_logits_score_the_last_row(r: np.random.Generator, bias: bool) -> None:
    x, norm, weight, b = some(r, ROWS, HIDDEN), some(r, HIDDEN), some(r, VOCABULARY, HIDDEN), some(r, VOCABULARY)
    logits = torch.empty(1, VOCABULARY)
    arguments = (tensor(x), tensor(norm), tensor(weight), tensor(b) if bias else None, logits)
    all_ops()["vocabulary_logits"].reference(*arguments, epsilon=EPSILON)
    close(logits, rms_norm(x[-1:], norm, EPSILON) @ weight.T + bias * b)


def rotated(x: Array, positions: Array, frequencies: Array) -> Array:
    """x [rows, heads, D] as complex numbers, one a pair (i, i + D/2), turned by position x frequency."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[:, None, None] * frequencies)
    return np.concatenate((turned.real, turned.imag), -1)


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norms", [False, True])
def test_attention_inputs(
    r: np.random.Generator, rows: int, heads: int, kv_heads: int, bias: bool, norms: bool
) -> None:
    columns = (heads + 2 * kv_heads) * SIZE
    x, norm, weight, b = some(r, rows, HIDDEN), some(r, HIDDEN), some(r, columns, HIDDEN), some(r, columns)
    q_norm, k_norm = some(r, SIZE), some(r, SIZE)
    frequencies, positions = np.array([1.0, 0.5, 0.1, 0.01]), START + np.arange(rows, dtype=np.float64)
    angles = positions[:, None] * frequencies
    before = some(r, 2, kv_heads, CONTEXT, SIZE)
    query, caches = torch.empty(rows, heads, SIZE), [tensor(before[0]), tensor(before[1])]
    all_ops()["attention_inputs"].reference(
        tensor(x),
        tensor(norm),
        tensor(weight),
        tensor(b) if bias else None,
        tensor(q_norm) if norms else None,
        tensor(k_norm) if norms else None,
        tensor(np.cos(angles)),
        tensor(np.sin(angles)),
        SimpleNamespace(start=START, length=rows),
        query,
        *caches,
        epsilon=EPSILON,
        head_norm_epsilon=0.5,
        ring=False,
    )
    product = (rms_norm(x, norm, EPSILON) @ weight.T + bias * b).reshape(rows, -1, SIZE)
    q, k, v = product[:, :heads], product[:, heads : heads + kv_heads], product[:, heads + kv_heads :]
    if norms:
        q, k = rms_norm(q, q_norm, 0.5), rms_norm(k, k_norm, 0.5)
    close(query, rotated(q, positions, frequencies))
    expected = before.copy()
    expected[0, :, START : START + rows] = rotated(k, positions, frequencies).transpose(1, 0, 2)
    expected[1, :, START : START + rows] = v.transpose(1, 0, 2)
    for cache, want in zip(caches, expected, strict=True):
        close(cache, want)


@pytest.mark.parametrize("start", [0, START])
@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (4, 1)])
def test_attention(r: np.random.Generator, start: int, rows: int, heads: int, kv_heads: int) -> None:
    query = some(r, rows, heads, SIZE)
    key, value = some(r, kv_heads, CONTEXT, SIZE), some(r, kv_heads, CONTEXT, SIZE)
    key[:, start + rows :] = value[:, start + rows :] = np.nan  # what lies past the end must not matter
    y, scale = torch.empty(rows, heads * SIZE), 0.3
    parameters = SimpleNamespace(start=start, length=rows)
    all_ops()["attention"].reference(tensor(query), tensor(key), tensor(value), parameters, y, scale=scale, window=0)
    expected = np.empty((rows, heads, SIZE))
    for head in range(heads):
        group = head // (heads // kv_heads)
        for row in range(rows):
            seen = slice(0, start + row + 1)
            chances = softmax(scale * key[group, seen] @ query[row, head])
            expected[row, head] = chances @ value[group, seen]
    close(y, expected.reshape(rows, -1))


@pytest.mark.parametrize("start", [0, 2, 9, 40])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("capacity", [9, 64])
def test_attention_in_a_window_over_a_cache_whose_rows_go_round(
    r: np.random.Generator, start: int, rows: int, capacity: int
) -> None:
    query, window = some(r, rows, 2, SIZE), 4
    key, value = (some(r, 1, start + rows, SIZE) for _ in range(2))
    caches = [torch.full((1, capacity, SIZE), torch.nan) for _ in range(2)]
    for cache, numbers in zip(caches, (key, value), strict=True):
        append(cache, tensor(numbers[:, :start]), 0) if start < capacity else append_one_by_one(cache, numbers, start)
        append(cache, tensor(numbers[:, start:]), start)
    y, parameters = torch.empty(rows, 2 * SIZE), SimpleNamespace(start=start, length=rows)
    all_ops()["attention"].reference(tensor(query), *caches, parameters, y, scale=0.3, window=window)
    expected = np.empty((rows, 2, SIZE))
    for head in range(2):
        for row in range(rows):
            seen = slice(max(0, start + row + 1 - window), start + row + 1)
            expected[row, head] = softmax(0.3 * key[0, seen] @ query[row, head]) @ value[0, seen]
    close(y, expected.reshape(rows, -1))


def append_one_by_one(cache: torch.Tensor, numbers: NDArray[Any], end: int) -> None:
    for position in range(end):
        append(cache, tensor(numbers[:, position : position + 1]), position)


@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_host_function_gets_a_copy_of_the_rows_in_float32_and_may_keep_or_change_it(
    returns: bool, dtype: torch.dtype
) -> None:
    x, y = torch.arange(8, dtype=dtype).view(2, 4), torch.full((2, 4), torch.nan, dtype=dtype)

    def process(rows: NDArray[np.float32]) -> NDArray[np.float32] | None:
        assert (rows.dtype, rows.shape) == (np.float32, (2, 4))
        if returns:
            return rows * 3
        rows *= 3
        return None

    all_ops()["host_function"].reference(x, y, process=process)
    assert torch.equal(y, 3 * x)
    assert torch.equal(x, torch.arange(8, dtype=dtype).view(2, 4)), "the operand is only read"


@pytest.mark.parametrize("returns", [False, True])
def test_caller_logits_hands_over_the_ids_so_far_and_takes_the_row_back(returns: bool) -> None:
    history, logits = torch.arange(CONTEXT, dtype=torch.int32), torch.zeros(1, VOCABULARY)
    met: list[list[int]] = []

    def process(ids: NDArray[np.int32], row: NDArray[np.float32]) -> NDArray[np.float32] | None:
        met.append(ids.tolist())
        if returns:
            return row + 2
        row += 2
        return None

    parameters = SimpleNamespace(start=START, length=ROWS)
    all_ops()["caller_logits"].reference(history, parameters, logits, process=process)
    assert met == [list(range(START + ROWS))]
    assert torch.equal(logits, torch.full((1, VOCABULARY), 2.0))


RELATIONS: list[tuple[str, dict[str, int], str | None]] = [
    ("attention", {"A": 32, "Q": 4, "D": 8, "G": 2}, None),
    ("attention", {"A": 33, "Q": 4, "D": 8, "G": 2}, "output columns"),
    ("attention", {"A": 32, "Q": 4, "D": 8, "G": 3}, "a multiple of kv heads"),
    ("attention_inputs", {"N": 64, "Q": 4, "G": 2, "D": 8, "F": 4}, None),
    ("attention_inputs", {"N": 65, "Q": 4, "G": 2, "D": 8, "F": 4}, "weight rows"),
    ("attention_inputs", {"N": 64, "Q": 4, "G": 2, "D": 8, "F": 3}, "twice the frequencies"),
    ("attention_inputs", {"N": 80, "Q": 4, "G": 3, "D": 8, "F": 4}, "a multiple of kv heads"),
    ("gated_linear", {"N": 40, "F": 20}, None),
    ("gated_linear", {"N": 41, "F": 20}, "twice the output columns"),
]


@pytest.mark.parametrize(("name", "dims", "complaint"), RELATIONS)
def test_axes_that_do_not_fit_each_other_are_complained_about(
    name: str, dims: dict[str, int], complaint: str | None
) -> None:
    said = all_ops()[name].relations(dims, {})
    assert said is None if complaint is None else complaint in (said or "")


def test_letters_are_bound_by_the_operands_and_must_agree() -> None:
    op: Op = all_ops()["linear"]
    rows = Size("tokens")
    shapes = {"x": (rows, 8), "weight": (4, 8), "y": (rows, 4)}
    assert bind_axes(op, shapes) == {"M": rows, "K": 8, "N": 4}
    with pytest.raises(ValueError, match="weight: expected axis K = 8, found 9"):
        bind_axes(op, shapes | {"weight": (4, 9)})
    with pytest.raises(ValueError, match=r"x: expected 2 axes \(M K\), found 1"):
        bind_axes(op, shapes | {"x": (rows,)})
    with pytest.raises(ValueError, match="logits: expected axis 1 = 1, found 2"):
        bind_axes(all_ops()["sample"], {"logits": (2, 5)})


def test_the_flops_of_the_products_are_two_a_multiply() -> None:
    assert all_ops()["linear"].flops({"M": 2, "N": 3, "K": 5}) == 2 * math.prod((2, 3, 5))
    assert all_ops()["attention"].flops({"Q": 2, "D": 3, "M": 1, "start": 4}) == 2 * 2 * 2 * 3 * 5
