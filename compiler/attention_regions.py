"""Which part of the graph is one layer's attention, and is it ours? What lies between the products of query, key and
value and the product behind them is run on random numbers, and taken if it gives what our launches would."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from hjgc.compiler.evaluate import SHAPES, Evaluator, Unknown, cone, linear_columns
from hjgc.compiler.frequencies import frequencies
from hjgc.compiler.interface import Array, Interface, Sizes, Slot, dimension
from hjgc.compiler.meanings import attend, merge_heads, rms_norm, rotate, split_heads
from hjgc.compiler.rules.rule import DOMAIN, NODES_KEY, VALUE_KEY, Journal, is_op, node_name, source_nodes

CORES = ("Softmax", "Attention", "GroupQueryAttention", "MultiHeadAttention")
TOLERANCE = 2e-4
"""Of the largest number: sums of float32 in another order differ by less than a tenth of it."""
LONGEST = 1 << 17
"""Sizes at which a graph may change what it does are looked for up to here."""


@dataclass(frozen=True)
class Region:
    """From the products `linears` (query, key and value in some order, or all in one) and the caches to `target`."""

    target: ir.Value
    linears: tuple[ir.Value, ...]
    caches: dict[Slot, ir.Value]
    presents: dict[Slot, ir.Value]
    nodes: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        node = self.target.producer()
        assert node is not None
        return node_name(node)


@dataclass(frozen=True)
class Heads:
    query: int
    cache: int
    size: int


@dataclass(frozen=True)
class HeadNorm:
    """A norm over each head: its weight and epsilon."""

    weight: ir.Value
    epsilon: float


@dataclass(frozen=True)
class Attention:
    """What a region computes. `order`: which of its linears are query, key and value."""

    heads: Heads
    order: tuple[int, ...]
    frequencies: Array
    scale: float
    window: int = 0
    query_norm: HeadNorm | None = None
    key_norm: HeadNorm | None = None


class Refused(Exception):
    """Why a region is not ours."""


@dataclass
class AttentionFinder:
    """Finds the regions of one graph and puts our words in their place."""

    model: ir.Model
    interface: Interface
    journal: Journal
    _found: dict[str, Attention] = field(default_factory=dict[str, Attention])
    _angles: dict[bytes, tuple[ir.Value, ir.Value]] = field(default_factory=dict[bytes, tuple[ir.Value, ir.Value]])

    def __post_init__(self) -> None:
        self.evaluator = Evaluator(self.model, self.interface)

    def replace_all(self) -> None:
        """Every region that does what our launches do; of the others the journal says why not."""
        for region in list(self._regions()):
            try:
                self._replace(region, self._attention(region))
            except (Refused, Unknown) as why:
                self.journal.add("attention", region.name, str(why))

    def _regions(self) -> Iterator[Region]:
        products = [node.outputs[0] for node in self.model.graph if is_op(node, "Linear")]
        written = {slot: cone([value], set(products)) for value, slot in self.interface.presents.items()}
        values = {slot: value for value, slot in self.interface.presents.items()}
        for target in dict.fromkeys(node.inputs[0] for node in self.model.graph if is_op(node, "Linear")):
            if target is None or target.producer() is None:
                continue
            nodes = cone([target], set(products))
            if not any(node.op_type in CORES and node.domain != DOMAIN for node in nodes):
                continue
            linears = tuple(value for value in products if value in _operands(nodes))
            presents = {slot: values[slot] for slot, inner in written.items() if _operands(inner) & set(linears)
                        or values[slot] in linears}  # fmt: skip
            reached = [*nodes, *(node for slot in presents for node in written[slot])]
            used = _operands(node for node in reached if node.op_type not in SHAPES)
            caches = {slot: value for value, slot in self.interface.caches.items() if value in used}
            yield Region(target, linears, caches, presents, tuple(dict.fromkeys(reached)))

    def _attention(self, region: Region) -> Attention:
        """What the region computes; regions alike but for their weights are looked at once. Raises Refused."""
        key = _fingerprint(region, self.interface)
        norms = _head_norms(region)
        if key not in self._found:
            self._found[key] = Reader(self.evaluator, self.interface, region, norms).read()
        found = self._found[key]
        if not norms:
            return found
        return _with_norms(found, norms, region)

    def _replace(self, region: Region, found: Attention) -> None:
        products = [region.linears[i] for i in found.order]
        linears = [_producer(value) for value in products]
        (norm,) = {linear.inputs[0] for linear in linears} if len({linear.inputs[0] for linear in linears}) == 1 else [None]
        if norm is None or not is_op(norm.producer(), "RmsNorm"):
            raise Refused("query, key and value are not products of one norm")
        biases = [linear.inputs[2] if len(linear.inputs) > 2 else None for linear in linears]
        if len({bias is None for bias in biases}) > 1:
            raise Refused("only some of q, k and v have a bias")
        before = _producer(norm)
        cos, sin = self._rotary(found.frequencies)
        padded = (*(linear.inputs[1] for linear in linears), *([None] * (3 - len(linears))))
        padded_biases = (*biases, *([None] * (3 - len(biases))))
        slots = [next((region.caches[s] for s in region.caches if s.role == role), None) for role in ("key", "value")]
        inputs = [before.inputs[0], before.inputs[1], *padded, *padded_biases,
                  found.query_norm.weight if found.query_norm else None,
                  found.key_norm.weight if found.key_norm else None, cos, sin, *slots]  # fmt: skip
        attributes = {
            "epsilon": ir.AttrFloat32("epsilon", before.attributes["epsilon"].as_float()),
            "head_norm_epsilon": ir.AttrFloat32("head_norm_epsilon", found.query_norm.epsilon if found.query_norm else 0.0),
            "transposed": ir.AttrInt64s("transposed", [linear.attributes.get_int("transposed", 0) for linear in linears]),
            "heads": ir.AttrInt64("heads", found.heads.query),
            "kv_heads": ir.AttrInt64("kv_heads", found.heads.cache),
            "head_dim": ir.AttrInt64("head_dim", found.heads.size),
        }
        made = ir.Node(DOMAIN, "AttentionInputs", inputs, list(attributes.values()), num_outputs=3)
        scale = [ir.AttrFloat32("scale", found.scale)]
        attention = ir.Node(DOMAIN, "Attention", made.outputs, scale, num_outputs=1)
        self._insert(region, (before, *linears), made, attention)

    def _insert(self, region: Region, before: tuple[ir.Node, ...], made: ir.Node, attention: ir.Node) -> None:
        sources = dict.fromkeys(name for node in (*before, *region.nodes) for name in source_nodes(node))
        made.metadata_props[NODES_KEY] = attention.metadata_props[NODES_KEY] = "\n".join(sources)
        by_role = {slot.role: value for slot, value in region.presents.items()}
        names = (products_name(before), *(by_role[role].name if role in by_role else "" for role in ("key", "value")))
        for value, name in zip(made.outputs, names, strict=True):
            value.metadata_props[VALUE_KEY] = name or ""
        attention.outputs[0].shape, attention.outputs[0].type = region.target.shape, region.target.type
        attention.outputs[0].metadata_props[VALUE_KEY] = region.target.name or ""
        end = _producer(region.target)
        self.model.graph.insert_after(end, [made, attention])
        for user, index in list(region.target.uses()):
            if user is not attention:
                user.replace_input_with(index, attention.outputs[0])
        for value in region.presents.values():
            self.model.graph.outputs.remove(value)

    def _rotary(self, numbers: Array) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines of all positions for these frequencies, made once."""
        key = numbers.tobytes()
        if key not in self._angles:
            name = f"inverse_frequencies.{len(self._angles)}" if self._angles else "inverse_frequencies"
            constant = ir.Value(name=name, const_value=ir.tensor(numbers, name=name))
            constant.shape, constant.dtype = ir.Shape(numbers.shape), ir.DataType.FLOAT
            self.model.graph.register_initializer(constant)
            angles = ir.Node(DOMAIN, "RotaryAngles", [self.interface.ids, constant], num_outputs=1)
            cos, sin = (ir.Node("", kind, angles.outputs, num_outputs=1) for kind in ("Cos", "Sin"))
            first = self.model.graph[0]
            self.model.graph.insert_before(first, [angles, cos, sin])
            for node in (angles, cos, sin):
                node.metadata_props[NODES_KEY] = "position_ids"
            self._angles[key] = cos.outputs[0], sin.outputs[0]
        return self._angles[key]


def products_name(nodes: tuple[ir.Node, ...]) -> str:
    """The ONNX value that holds the query's product."""
    return nodes[1].outputs[0].name or ""


@dataclass
class Reader:
    """Guesses what a region computes and tries whether it does."""

    evaluator: Evaluator
    interface: Interface
    region: Region
    norms: dict[int, HeadNorm]

    def read(self) -> Attention:
        """Raises Refused, Unknown."""
        heads = self._heads()
        candidates = list(self._candidates(heads))
        if not candidates:
            raise Refused("its products are not those of query, key and value")
        reasons = list[str]()
        for candidate in candidates:
            try:
                return self._settled(candidate)
            except Refused as why:
                reasons.append(str(why))
        raise Refused(reasons[0])

    def _heads(self) -> Heads:
        """From the cache, an attribute, or the scores."""
        widths = [linear_columns(value) for value in self.region.linears]
        for node in self.region.nodes:
            if node.op_type == "GroupQueryAttention":
                query, cache = node.attributes.get_int("num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
                size = widths[0] // (query + 2 * cache) if len(widths) == 1 else max(widths) // query
                return Heads(query, cache, size)
        for cache in self.region.caches.values():
            assert cache.shape is not None
            count, size = dimension(cache.shape[1]), dimension(cache.shape[3])
            if count and size:
                return Heads(max(widths) // size, count, size)
        size = self._head_size_of_scores(max(widths))
        return Heads(max(widths) // size, min(widths) // size, size)

    def _head_size_of_scores(self, width: int) -> int:
        for node in self.region.nodes:
            if node.op_type == "Softmax" and node.inputs[0] is not None:
                given = {value: self._random(linear_columns(value), 3) for value in self.region.linears}
                (scores,) = self.evaluator.run([node.inputs[0]], given, Sizes(0, 3))
                return width // scores.reshape(-1, *scores.shape[-2:]).shape[0]
        raise Refused("how many heads it has is not known")

    def _candidates(self, heads: Heads) -> Iterator[Attention]:
        """What it may compute, by the widths of its products."""
        wanted = (heads.query * heads.size, heads.cache * heads.size, heads.cache * heads.size)
        scale = heads.size**-0.5
        for numbers in frequencies(self.evaluator, self.region.nodes, heads.size):
            for order in self._orders(wanted):
                yield Attention(heads, order, numbers, scale)

    def _orders(self, wanted: tuple[int, int, int]) -> Iterator[tuple[int, ...]]:
        widths = [linear_columns(value) for value in self.region.linears]
        if widths == [sum(wanted)]:
            yield (0,)
        if len(widths) != 3:
            return
        by_role = {slot.role: self._sources(value) for slot, value in self.region.presents.items()}
        for order in itertools.permutations(range(3)):
            fits = all(widths[i] == width for i, width in zip(order, wanted, strict=True))
            said = all(by_role.get(role, {i}) == {i} for role, i in zip(("key", "value"), order[1:], strict=True))
            if fits and said:
                yield order

    def _sources(self, value: ir.Value) -> set[int]:
        reached = _operands(cone([value], set(self.region.linears))) | {value}
        return {i for i, linear in enumerate(self.region.linears) if linear in reached}

    def _settled(self, candidate: Attention) -> Attention:
        """The candidate with its norms, scale and window, tried at sizes where the graph may change. Raises Refused."""
        found = _with_norms(candidate, self.norms, self.region) if self.norms else candidate
        for sizes in self._sizes():
            self._try(found, sizes)
        return found

    def _sizes(self) -> Iterator[Sizes]:
        """Some small ones, and those around every number that the region computes with."""
        cached = bool(self.region.caches)
        yield from (Sizes(3, 4), Sizes(0, 5), Sizes(2, 1), Sizes(1, 6)) if cached else (Sizes(0, 5), Sizes(0, 1))
        for number in sorted(_numbers(self.region.nodes)):
            yield from (Sizes(number - 2, 3), Sizes(number, 1)) if cached else (Sizes(0, number + 1),)

    def _try(self, found: Attention, sizes: Sizes) -> None:
        given, rows = self._given(found, sizes)
        wanted = _compute(found, rows, sizes)
        targets = {"its result": (self.region.target, wanted["y"])}
        for slot, value in self.region.presents.items():
            targets[f"the {slot.role}s that it caches"] = (value, wanted[slot.role])
        numbers = self.evaluator.run([value for value, _ in targets.values()], given, sizes)
        for (what, (_, expected)), got in zip(targets.items(), numbers, strict=True):
            if not _same(expected, got, sizes):
                where = f"{sizes.new} new tokens after {sizes.past}"
                raise Refused(f"{what} are not those of causal attention with rotated heads, seen at {where}")

    def _given(self, found: Attention, sizes: Sizes) -> tuple[dict[ir.Value, Array], dict[str, Array]]:
        """Random numbers, for the graph and for our words."""
        generator = np.random.default_rng(sizes.past * 4096 + sizes.new)
        linears = [generator.standard_normal((1, sizes.new, linear_columns(v))).astype(np.float32) for v in self.region.linears]
        given = dict(zip(self.region.linears, linears, strict=True))
        parts = [linears[i] for i in found.order]
        if len(parts) == 1:
            size = found.heads.size
            cuts = [found.heads.query * size, (found.heads.query + found.heads.cache) * size]
            parts = np.split(parts[0], cuts, axis=-1)
        rows = dict(zip(("query", "key", "value"), parts, strict=True))
        for slot in (Slot(0, "key"), Slot(0, "value")):
            past = generator.standard_normal((found.heads.cache, sizes.past, found.heads.size)).astype(np.float32)
            rows[f"past_{slot.role}"] = past
            for own, value in self.region.caches.items():
                if own.role == slot.role:
                    given[value] = self._filled(past, value, sizes)
        return given, rows

    def _filled(self, past: Array, cache: ir.Value, sizes: Sizes) -> Array:
        """The cache as the graph takes it, with room behind its rows if it has any."""
        rows = self.interface.rows(cache, sizes)
        if rows < sizes.total and rows != sizes.past:
            raise Refused(f"its cache has room for {rows} tokens")
        room = np.zeros((past.shape[0], rows - sizes.past, past.shape[2]), np.float32)
        return np.concatenate((past, room), axis=1)[None]

    def _random(self, width: int, count: int) -> Array:
        return np.random.default_rng(width).standard_normal((1, count, width)).astype(np.float32)


def _compute(found: Attention, rows: Mapping[str, Array], sizes: Sizes) -> dict[str, Array]:
    """What our launches give: the result, keys and values of all tokens."""
    query, key = split_heads(rows["query"], found.heads.query), split_heads(rows["key"], found.heads.cache)
    value = split_heads(rows["value"], found.heads.cache)
    if found.query_norm is not None and found.key_norm is not None:
        query, key = (_normed(x, norm) for x, norm in ((query, found.query_norm), (key, found.key_norm)))
    angles = np.arange(sizes.past, sizes.total, dtype=np.float32)[:, None] * found.frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    keys, values = (np.concatenate((rows[f"past_{role}"], new), axis=1) for role, new in (("key", key), ("value", value)))
    y = attend(query, keys, values, found.scale, found.window)
    return {"y": merge_heads(y), "key": keys[None], "value": values[None]}


def _normed(x: Array, norm: HeadNorm) -> Array:
    from hjgc.compiler.tables import read_tensor

    assert norm.weight.const_value is not None
    return rms_norm(x, read_tensor(norm.weight.const_value).astype(np.float32), norm.epsilon)


def _same(expected: Array, got: Array, sizes: Sizes) -> bool:
    """Equal but for rounding. A cache with room is looked at up to the last token."""
    if expected.ndim == 4 and got.ndim == 4 and got.shape[2] > expected.shape[2]:
        got = got[:, :, : sizes.total]
    if expected.shape != got.shape:
        return False
    return bool(np.max(np.abs(expected - got), initial=0.0) <= TOLERANCE * max(1.0, float(np.max(np.abs(expected)))))


def _head_norms(region: Region) -> dict[int, HeadNorm]:
    """By the linear whose heads it normalises."""
    found: dict[int, HeadNorm] = {}
    for node in region.nodes:
        if is_op(node, "RmsNorm") and node.inputs[0] is not None and node.inputs[1] is not None:
            reached = _operands(cone([node.inputs[0]], set(region.linears))) | {node.inputs[0]}
            sources = [i for i, linear in enumerate(region.linears) if linear in reached]
            if len(sources) != 1 or sources[0] in found or not node.inputs[1].is_initializer():
                raise Refused("a norm in it is not over the heads of query or key")
            found[sources[0]] = HeadNorm(node.inputs[1], node.attributes["epsilon"].as_float())
    return found


def _with_norms(found: Attention, norms: dict[int, HeadNorm], region: Region) -> Attention:
    """The same with this layer's own norms."""
    from dataclasses import replace

    query, key = norms.get(found.order[0]), norms.get(found.order[1])
    if query is None or key is None or len(norms) != 2:
        raise Refused("only one of query and key has a norm")
    if query.epsilon != key.epsilon:
        raise Refused("the norms of q and k have different epsilons")
    return replace(found, query_norm=query, key_norm=key)


def _numbers(nodes: Iterable[ir.Node]) -> set[int]:
    """Whole numbers in a region, from 9 on: what it does may change when as many tokens are there."""
    found: set[int] = set()
    for node in nodes:
        for value in node.inputs:
            tensor = None if value is None or not value.is_initializer() else value.const_value
            if tensor is not None and tensor.size <= 16 and not isinstance(tensor, ir.ExternalTensor):
                found |= {int(x) for x in tensor.numpy().reshape(-1) if np.isfinite(x) and x == int(x)}
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.INT:
                found.add(attribute.as_int())
    return {number for number in map(abs, found) if 8 < number <= LONGEST}


def _operands(nodes: Iterable[ir.Node]) -> set[ir.Value]:
    return {value for node in nodes for value in node.inputs if value is not None}


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _fingerprint(region: Region, interface: Interface) -> str:
    """Equal for regions that compute the same but for the numbers of their norms."""
    places: dict[ir.Value, str] = {value: f"linear {i} {linear_columns(value)}" for i, value in enumerate(region.linears)}
    places |= {value: f"cache {slot.role} {value.shape}" for slot, value in region.caches.items()}
    lines = list[str]()
    for i, node in enumerate(region.nodes):
        operands = [_place(value, node, places) for value in node.inputs]
        attributes = [f"{name}={attr.value}" for name, attr in sorted(node.attributes.items())]
        lines.append(f"{node.domain}.{node.op_type}({operands}){attributes}")
        places |= {value: f"{i}.{j}" for j, value in enumerate(node.outputs)}
    lines += [places.get(region.target, ""), *(f"{slot.role} {places.get(value)}" for slot, value in region.presents.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _place(value: ir.Value | None, node: ir.Node, places: Mapping[ir.Value, str]) -> str:
    if value is None or value in places:
        return places.get(value, "") if value is not None else "-"
    tensor = value.const_value
    if tensor is not None and value.is_initializer():
        if is_op(node, "RmsNorm"):
            return f"norm {tensor.shape}"
        if tensor.nbytes <= 4096 and not isinstance(tensor, ir.ExternalTensor):
            return f"{tensor.dtype}{tensor.shape}{tensor.numpy().tobytes().hex()}"
    return f"value {value.name}" if node.op_type not in ("Shape", "Size") else f"shape {value.shape}"
