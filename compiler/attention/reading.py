"""What does a region of attention compute? Heads, frequencies, norms, scale and window are guessed from its numbers,
then it is run on random ones, and its results are compared with what our launches would give."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from hjgc.compiler.attention.evaluate import SHAPES, Evaluator, Uncomputable, cone, linear_columns
from hjgc.compiler.attention.frequencies import frequencies, may_be_table
from hjgc.compiler.attention.meanings import attend, merge_heads, rms_norm, rotate, split_heads
from hjgc.compiler.interface import Array, Interface, Role, Sizes, dimension
from hjgc.compiler.rules.rule import is_op
from hjgc.compiler.tables import read_tensor

TOLERANCES = {ir.DataType.FLOAT: 2e-4, ir.DataType.FLOAT16: 1e-3, ir.DataType.BFLOAT16: 1e-2}
"""Of the largest number, by the coarsest table of cosines that the region has: sums of float32 in another order differ
by less than a tenth of the first, and what is rounded to half precision is off by less than a half of the others."""
LONGEST = 1 << 17
MOST_NUMBERS = 1 << 26
"""Sizes at which a graph may change what it does are looked for up to here: tokens, and numbers in a cache of them."""
FEW = 256
"""Tokens after which one alone is tried too."""
MOST_FLOAT = 1 << 13
"""Larger floats are bases of angles and marks in masks, not counts of tokens."""
LARGE, LOOSER = 6.0, 8.0
"""Numbers so many times as large are tried too; of large scores rounding takes more."""
MUST = 2
"""Sizes, the first ones, that a region must take."""
SHAPED = ("Expand", "Reshape", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze")
ROLES: tuple[Role, Role] = ("key", "value")


class Refused(Exception):
    """Why a region is not ours."""


class Different(Refused):
    """It has all parts, and computes something else."""


@dataclass(frozen=True)
class HeadNorm:
    """A norm over each head: of `x`, or of the part that its operator says."""

    weight: ir.Value
    epsilon: float
    x: ir.Value | None
    part: str = ""


@dataclass(frozen=True)
class Region:
    """From the products `linears` (query, key and value in some order, or all in one) and the caches to `target`."""

    target: ir.Value
    linears: tuple[ir.Value, ...]
    caches: dict[Role, ir.Value]
    presents: dict[Role, ir.Value]
    nodes: tuple[ir.Node, ...]

    def norms(self) -> list[HeadNorm]:
        """Those over the heads, as nodes or inside of an operator of attention."""
        found = list[HeadNorm]()
        for node in self.nodes:
            if is_op(node, "RmsNorm") and node.inputs[0] is not None and node.inputs[1] is not None:
                found.append(HeadNorm(node.inputs[1], node.attributes["epsilon"].as_float(), node.inputs[0]))
            if node.op_type == "GroupQueryAttention" and len(node.inputs) > 15:
                epsilon = node.attributes.get("qk_norm_epsilon")
                for part, weight in zip(("query", "key"), node.inputs[14:16], strict=True):
                    if weight is not None:
                        found.append(HeadNorm(weight, 1e-6 if epsilon is None else epsilon.as_float(), None, part))
        return found


@dataclass(frozen=True)
class Heads:
    """Of the query, of the cache, and the elements of each."""

    query: int
    cache: int
    size: int

    @property
    def widths(self) -> tuple[int, int, int]:
        """Columns of query, key and value."""
        return self.query * self.size, self.cache * self.size, self.cache * self.size


@dataclass(frozen=True)
class Attention:
    """What a region computes. `order`: which of its linears are query, key and value. `norms`: which of the region's
    norms are those over the heads of query and key; none, or both."""

    heads: Heads
    order: tuple[int, ...]
    frequencies: Array
    scale: float
    window: int = 0
    norms: tuple[int, ...] = ()
    untried: int = 0
    """Tokens from which on it was not tried, though a number in it says that it may change there; 0 for none."""
    places: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Node and output of the region that hold what our launches keep, if some do: `query` [1, H, S, D], `cos` and `sin`
    [1, S, D / 2]."""


@dataclass
class Reader:
    """Guesses, and tries. One for each kind of region."""

    evaluator: Evaluator
    interface: Interface
    region: Region
    _sizes: list[Sizes] = field(default_factory=list[Sizes])
    _tolerance: float = TOLERANCES[ir.DataType.FLOAT]

    def read(self) -> Attention:
        """Raises Refused, Unknown."""
        first = self.interface.possible(Sizes(0, 11)) or self.interface.possible(Sizes(0, 1))
        if first is not None and first.total == 1:  # angles are seen at position 1
            first = self.interface.possible(Sizes(1, 1))
        if first is None:
            raise Refused("its cache has room for no token")
        heads = self._heads(first)
        if min(heads.query, heads.cache, heads.size) < 1:
            raise Refused("how many heads it has is not known")
        self.evaluator.cache = heads.cache, heads.size
        self._sizes = list(self._tried_sizes(heads))
        self._tolerance = _tolerance(self.region)
        refusal = Refused("its products are not those of query, key and value")
        for order in self._orders(heads):
            plain = Attention(heads, order, np.zeros(heads.size // 2, np.float32), heads.size**-0.5)
            plain = replace(plain, norms=self._norms(plain, first))
            given, _ = self._given(plain, first)
            refusal = Refused("by which angles it turns heads is not found")
            for numbers in frequencies(self.evaluator, self.region.nodes, heads.size, given, first):
                reason, found = self._fitted(replace(plain, frequencies=numbers))
                if found is not None:
                    return replace(found, places=self._places(found), untried=self._untried(heads))
                refusal = Different(reason)
        raise refusal

    def _heads(self, sizes: Sizes) -> Heads:
        """From the attributes of an operator, the cache, or the scores."""
        widths = [linear_columns(value) for value in self.region.linears]
        if not widths:
            raise Refused("its query, key and value are not products with weights")
        query, cache = self._named_heads()
        kept = [*self.region.caches.values(), *self.region.presents.values()]
        size = next((size for value in kept if (size := _axis(value, 3))), None)
        cache = cache or next((count for value in kept if (count := _axis(value, 1))), None)
        if len(widths) == 1 and query is not None and cache is not None:
            return Heads(query, cache, widths[0] // (query + 2 * cache))
        if len(widths) == 1 and cache is not None and size is not None:
            return Heads((widths[0] - 2 * cache * size) // size, cache, size)
        size = size or max(widths) // (query or self._heads_of_scores(sizes))
        return Heads(max(widths) // size, cache or min(widths) // size, size)

    def _named_heads(self) -> tuple[int | None, int | None]:
        """Heads of the query and of the cache, where an operator says so."""
        for node in self.region.nodes:
            if node.op_type in ("GroupQueryAttention", "MultiHeadAttention"):
                counts = (node.attributes.get_int(name, 0) or None for name in ("num_heads", "kv_num_heads"))
                return next(counts), next(counts)
        return None, None

    def _heads_of_scores(self, sizes: Sizes) -> int:
        """What the softmax is over, one matrix a head."""
        given = {value: _random(0, (sizes.batch, sizes.new, linear_columns(value))) for value in self.region.linears}
        for node in self.region.nodes:
            if node.op_type == "Softmax" and node.inputs[0] is not None:
                (scores,) = self.evaluator.run([node.inputs[0]], given, sizes)
                return scores.reshape(sizes.batch, -1, *scores.shape[-2:]).shape[1]
            if node.op_type == "Attention" and node.inputs[0] is not None:
                (query,) = self.evaluator.run([node.inputs[0]], given, sizes)
                return query.shape[1] if query.ndim == 4 else node.attributes.get_int("q_num_heads", 1)
        raise Refused("how many heads it has is not known")

    def _orders(self, heads: Heads) -> Iterator[tuple[int, ...]]:
        """Which linears may be query, key and value, by their widths and by which of them each cache is written
        with."""
        widths = [linear_columns(value) for value in self.region.linears]
        if widths == [sum(heads.widths)]:
            yield (0,)
        if len(widths) != 3:
            return
        written = {role: self._linears_behind(value) for role, value in self.region.presents.items()}
        for order in itertools.permutations(range(3)):
            fits = all(widths[i] == width for i, width in zip(order, heads.widths, strict=True))
            if fits and all(i in written.get(role, {i}) for role, i in zip(ROLES, order[1:], strict=True)):
                yield order

    def _linears_behind(self, value: ir.Value) -> set[int]:
        reached = operands(cone([value], set(self.region.linears))) | {value}
        return {i for i, linear in enumerate(self.region.linears) if linear in reached}

    def _norms(self, found: Attention, sizes: Sizes) -> tuple[int, ...]:
        """Which norm sees the query, and which the key. Raises Refused for others."""
        by_part: dict[str, int] = {}
        for i, norm in enumerate(self.region.norms()):
            parts = [part for part in ("query", "key", "value") if self._is_over(norm, part, found, sizes)]
            if len(parts) != 1 or parts[0] == "value" or parts[0] in by_part:
                raise Refused("a norm in it is not over the heads of query or key")
            by_part[parts[0]] = i
        if by_part and len(by_part) < 2:
            raise Refused("only one of query and key has a norm")
        norms = tuple(by_part[part] for part in ("query", "key") if part in by_part)
        if len({self.region.norms()[i].epsilon for i in norms}) > 1:
            raise Refused("the norms of q and k have different epsilons")
        return norms

    def _is_over(self, norm: HeadNorm, part: str, found: Attention, sizes: Sizes) -> bool:
        """Is what it normalises anything but zero, where this part alone is?"""
        if norm.x is None:
            return norm.part == part
        given, _ = self._given(found, sizes, only=part)
        (numbers,) = self.evaluator.run([norm.x], given, sizes)
        return bool(np.any(numbers))

    def _fitted(self, candidate: Attention) -> tuple[str, Attention | None]:
        """The candidate as it is, or with a scale or a window that some number in the region gives."""
        reason = self._difference(candidate)
        if reason is None:
            return "", candidate
        scales = [candidate.scale, *_scales(self.region.nodes)]
        scaled = [replace(candidate, scale=scale) for scale in scales]
        near = next((found for found in scaled if self._difference(found, self._sizes[:1]) is None), candidate)
        windows = [number + i for number in sorted(_numbers(self.region.nodes)) for i in (0, -1, 1)]
        for window in (0, *windows):
            found = replace(near, window=window)
            if self._difference(found) is None:
                return "", found
        return reason, None

    def _tried_sizes(self, heads: Heads) -> Iterator[Sizes]:
        """Some small ones, and those around every number that the region computes with, as far as the graph takes
        them."""
        cached, wanted = bool(self.region.caches), [Sizes(0, 5), Sizes(0, 1), Sizes(0, 24), Sizes(0, 300)]
        if cached:
            wanted = [Sizes(0, 5), Sizes(2, 1), Sizes(3, 4), Sizes(0, 1), Sizes(9, 6), Sizes(0, 24), Sizes(600, 3)]
        for number in sorted(_numbers(self.region.nodes)):
            wanted += [Sizes(number - 2, 5)] if cached else [Sizes(0, number + 2)]
            wanted += [Sizes(number + 1, 1)] if cached and number <= FEW else []
        found = [self.interface.possible(sizes) for sizes in wanted]
        most = self._most(heads)
        yield from dict.fromkeys(sizes for sizes in found if sizes is not None and sizes.total <= most)

    def _most(self, heads: Heads) -> int:
        """Tokens that it is tried with."""
        if not self.region.caches:  # as many queries as keys
            return math.isqrt(MOST_NUMBERS // heads.query)
        return MOST_NUMBERS // (heads.query * heads.size)

    def _untried(self, heads: Heads) -> int:
        return min((number for number in _numbers(self.region.nodes) if number + 3 > self._most(heads)), default=0)

    def _difference(self, found: Attention, tried: Sequence[Sizes] = ()) -> str | None:
        """What differs first, and where; None if nothing does."""
        for sizes, factor in self._trials(tried):
            given, rows = self._given(found, sizes, factor=factor)
            wanted = [_compute(found, self.region, each, sizes) for each in rows]
            targets = {"y": self.region.target, **self.region.presents}
            try:
                numbers = self.evaluator.run(targets.values(), given, sizes)
            except Uncomputable:  # some files take a prompt or one token, and nothing between, up to a length
                if sizes in self._sizes[:MUST]:
                    raise
                continue
            tolerance = self._tolerance * (1.0 if factor == 1.0 else LOOSER)
            for name, got in zip(targets, numbers, strict=True):
                if not _same(np.stack([each[name] for each in wanted]), got, sizes, tolerance):
                    what = "what it gives is not that" if name == "y" else f"the {name}s that it caches are not those"
                    where = f"{sizes.past} tokens cached and {sizes.new} new"
                    return f"{what} of causal attention with rotated heads, seen with {where}"
        return None

    def _trials(self, tried: Sequence[Sizes]) -> Iterator[tuple[Sizes, float]]:
        """These sizes, or all; the first of all with large numbers too, which something may cut off."""
        yield from ((sizes, 1.0) for sizes in tried or self._sizes)
        yield from () if tried else ((self._sizes[0], LARGE),)

    def _places(self, found: Attention) -> dict[str, tuple[int, int]]:
        """Where the region has what our launches keep too: for those who compare the two."""
        sizes = self._sizes[0]
        given, rows = self._given(found, sizes)
        angles = np.arange(sizes.past, sizes.total, dtype=np.float32)[:, None] * found.frequencies
        wanted = {
            "query": np.stack([_compute(found, self.region, each, sizes)["query"] for each in rows]),
            "cos": np.tile(np.cos(angles), (sizes.batch, 1, 1)),
            "sin": np.tile(np.sin(angles), (sizes.batch, 1, 1)),
        }
        outputs = [(i, j, value) for i, node in enumerate(self.region.nodes) for j, value in enumerate(node.outputs)]
        outputs = [(i, j, value) for i, j, value in outputs if value.uses()]
        numbers = self.evaluator.run([value for *_, value in outputs], given, sizes)
        places: dict[str, tuple[int, int]] = {}
        for (i, j, _), array in zip(outputs, numbers, strict=True):
            for name, expected in wanted.items():
                if name not in places and _same(expected, array, sizes, self._tolerance):
                    places[name] = (i, j)
        return places

    def _given(
        self, found: Attention, sizes: Sizes, only: str = "", factor: float = 1.0
    ) -> tuple[dict[ir.Value, Array], list[dict[str, Array]]]:
        """Random numbers times a factor, for the graph, and of each sequence for our words; zeros but for one part, if
        said."""
        seed = sizes.past * 4096 + sizes.new
        parts = {
            name: _random(seed + i, (sizes.batch, sizes.new, width)) * np.float32(factor * (only in ("", name)))
            for i, (name, width) in enumerate(zip(("query", "key", "value"), found.heads.widths, strict=True))
        }
        whole = list(parts.values()) if len(found.order) == 3 else [np.concatenate(list(parts.values()), axis=-1)]
        given = {self.region.linears[i]: array for i, array in zip(found.order, whole, strict=True)}
        for i, role in enumerate(ROLES):
            shape = (sizes.batch, found.heads.cache, sizes.past, found.heads.size)
            parts[f"past_{role}"] = past = _random(seed + 3 + i, shape)
            if role in self.region.caches:
                given[self.region.caches[role]] = self._with_room(past, self.region.caches[role], sizes)
        return given, [{name: array[i] for name, array in parts.items()} for i in range(sizes.batch)]

    def _with_room(self, past: Array, cache: ir.Value, sizes: Sizes) -> Array:
        """The cache as the graph takes it, with room behind its rows if it has any."""
        room = (0, self.interface.rows(cache, sizes) - sizes.past)
        return np.pad(past, ((0, 0), (0, 0), room, (0, 0)))


def _axis(value: ir.Value, axis: int) -> int | None:
    return None if value.shape is None or len(value.shape) <= axis else dimension(value.shape[axis])


def operands(nodes: Iterable[ir.Node], *, shapes: bool = True) -> set[ir.Value]:
    """What these nodes take; without `shapes`, not that of which only the shape is taken."""
    taken = (node for node in nodes if shapes or node.op_type not in SHAPES)
    return {value for node in taken for value in node.inputs if value is not None}


def _compute(found: Attention, region: Region, rows: Mapping[str, Array], sizes: Sizes) -> dict[str, Array]:
    """What our launches give for one sequence: the result [S, H * D], keys and values of all tokens [G, T, D]."""
    query, key = split_heads(rows["query"][None], found.heads.query), split_heads(rows["key"][None], found.heads.cache)
    value = split_heads(rows["value"][None], found.heads.cache)
    if found.norms:
        norms = region.norms()
        query, key = (_normed(x, norms[i]) for x, i in zip((query, key), found.norms, strict=True))
    angles = np.arange(sizes.past, sizes.total, dtype=np.float32)[:, None] * found.frequencies
    query, key = (rotate(x, np.cos(angles), np.sin(angles)) for x in (query, key))
    keys, values = (np.concatenate((rows[f"past_{role}"], x), axis=1) for role, x in (("key", key), ("value", value)))
    y = attend(query, keys, values, found.scale, found.window)
    return {"y": merge_heads(y)[0], "query": query, "key": keys, "value": values}


def _normed(x: Array, norm: HeadNorm) -> Array:
    assert norm.weight.const_value is not None
    return rms_norm(x, read_tensor(norm.weight.const_value).astype(np.float32), norm.epsilon)


def _same(expected: Array, got: Array, sizes: Sizes, tolerance: float) -> bool:
    """Equal but for rounding. A cache with room is looked at up to the last token."""
    if expected.ndim == 4 and got.ndim == 4:
        got = got[:, :, : sizes.total]
    if expected.shape != got.shape:
        return False
    largest = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    return bool(np.max(np.abs(expected - got), initial=0.0) <= tolerance * largest)


def _tolerance(region: Region) -> float:
    kinds = {value.const_value.dtype for value in operands(region.nodes) if may_be_table(value) and value.const_value}
    return max((TOLERANCES[kind] for kind in kinds), default=TOLERANCES[ir.DataType.FLOAT])


def _numbers(nodes: Iterable[ir.Node]) -> set[int]:
    """Whole numbers in a region, and how long its tables are: what it does may change when as many tokens are there.
    Those of shapes alone are not among them."""
    found: set[int] = set()
    nodes = list(nodes)
    norms = {node.inputs[1] for node in nodes if is_op(node, "RmsNorm")}
    for node in nodes:
        for value in () if _is_shape(node) else node.inputs:
            tensor = None if value is None or not value.is_initializer() else value.const_value
            if tensor is None or value is None or value in norms:
                continue
            if tensor.size <= 16 and not isinstance(tensor, ir.ExternalTensor) and tensor.dtype != ir.DataType.STRING:
                numbers = np.asarray(tensor.numpy(), np.float64).reshape(-1)
                most = LONGEST if tensor.dtype.is_integer() else MOST_FLOAT
                found |= {int(x) for x in numbers if abs(x) <= most and x == int(x)}
            elif len(tensor.shape) > 1:
                found |= {int(axis) for axis in tensor.shape.numpy()}
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.INT:
                found.add(attribute.as_int())
    return {number for number in map(abs, found) if 1 < number <= LONGEST}


def _is_shape(node: ir.Node) -> bool:
    """Does it take its numbers for a shape, or put them together for one?"""
    users = [user.op_type for user, _ in node.outputs[0].uses()]
    return node.op_type in SHAPED or (node.op_type == "Concat" and bool(users) and set(users) <= set(SHAPED))


def _scales(nodes: Iterable[ir.Node]) -> list[float]:
    """What a region may multiply scores with: its numbers, or their squares where query and key are multiplied each."""
    found: dict[float, None] = {}
    for node in nodes:
        numbers = [attr.as_float() for attr in node.attributes.values() if attr.type == ir.AttributeType.FLOAT]
        for value in node.inputs:
            tensor = None if value is None or not value.is_initializer() else value.const_value
            if tensor is not None and tensor.size == 1 and tensor.dtype in TOLERANCES:
                numbers.append(float(read_tensor(tensor).reshape(-1)[0]))
        for number in numbers:
            if 1e-6 < number < 1e6:
                found |= dict.fromkeys((number, number * number, 1 / number, 1 / (number * number)))
    return list(found)


def _random(seed: int, shape: tuple[int, ...]) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)
