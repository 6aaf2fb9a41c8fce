"""How can a plan file be made wrong? Each mutation takes a generator and what it breaks, and gives other bytes.

`FILE_MUTATIONS` break the container, `SPELLING_MUTATIONS` the msgpack of a section, `PLAN_MUTATIONS` the decoded plan,
a tree of maps, lists and scalars, in place. A mutation that finds nothing to break in this plan returns None or False.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgpack

from hjgc.plan_format.container import ENTRY, HEADER
from tests.plan_format.files import Part, placed, put_together

Tree = Any
Path = tuple[str | int, ...]
HUGE = (1 << 31, (1 << 40) + 1, (1 << 62), (1 << 63) - 1, (1 << 64) - 1)
ESCAPES = (
    "../secret.bin",
    "sub/../../secret.bin",
    "/etc/passwd",
    "..\\secret.bin",
    "C:\\secret.bin",
    "C:secret.bin",
    "weights\0.bin",
    "\\\\host\\share\\x",
    "file:///etc/passwd",
    "~\u202e/secret",
    "./secret.bin",
    "a//b",
    "NUL",
    "nul.txt",
    "x.",
    " x",
    "",
    ".",
    "..",
    "x" * 5000,
    "x" * 300,
    "link.bin",
    "linked/secret.bin",
    "pipe",
    ".",
)


def parts_of(tree: Tree, path: Path = ()) -> Iterator[tuple[Path, Tree]]:
    """Every value in the tree, with the way to it."""
    yield path, tree
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from parts_of(value, (*path, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from parts_of(value, (*path, i))


def put(tree: Tree, path: Path, value: Any) -> None:
    _parent(tree, path)[path[-1]] = value


def get(tree: Tree, path: Path) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def _parent(tree: Tree, path: Path) -> Any:
    return get(tree, path[:-1])


def _choose(r: random.Random, tree: Tree, fits: Callable[[Path, Any], bool]) -> Path | None:
    found = [path for path, value in parts_of(tree) if path and fits(path, value)]
    return r.choice(found) if found else None


def _change(r: random.Random, tree: Tree, fits: Callable[[Path, Any], bool], to: Callable[[Any], Any]) -> bool:
    path = _choose(r, tree, fits)
    if path is None:
        return False
    put(tree, path, to(get(tree, path)))
    return True


def _number(_: Path, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _float(_: Path, value: Any) -> bool:
    return isinstance(value, float)


def _named(*names: str) -> Callable[[Path, Any], bool]:
    return lambda path, value: path[-1] in names


# Mutations of the decoded plan.


def wrong_type(r: random.Random, tree: Tree) -> bool:
    others: list[Any] = [None, True, 1.5, "text", b"bytes", [], {}, [[]], {"type": "operand"}, msgpack.ExtType(5, b"x")]
    others.append(msgpack.Timestamp(5, 5))
    return _change(r, tree, lambda *_: True, lambda _: r.choice(others))


def negative(r: random.Random, tree: Tree) -> bool:
    return _change(r, tree, _number, lambda value: -value - 1)


def huge(r: random.Random, tree: Tree) -> bool:
    return _change(r, tree, _number, lambda _: r.choice(HUGE))


def off_by_a_little(r: random.Random, tree: Tree) -> bool:
    return _change(r, tree, _number, lambda value: max(0, value + r.choice((-256, -2, -1, 1, 2, 256))))


def index_out_of_range(r: random.Random, tree: Tree) -> bool:
    fits = _named("index", "variant", "template", "file", "before", "after", "launch")
    return _change(r, tree, fits, lambda value: r.choice((value + 1000, -1, *HUGE)))


def inflated_length(r: random.Random, tree: Tree) -> bool:
    fits = _named("length", "bytes", "offset", "workspace_bytes", "shared_bytes", "threads", "first", "last", "high")
    return _change(r, tree, fits, lambda value: r.choice((value * 2 + 4096, value + 256, *HUGE)))


def huge_shape(r: random.Random, tree: Tree) -> bool:
    def to(shape: list[Any]) -> list[Any]:
        return r.choice(([1 << 31] * 8, [*shape, 1 << 40], [0, *shape], [], [1] * 500))

    return _change(r, tree, lambda path, value: path[-1] == "shape" and isinstance(value, list), to)


def not_a_number(r: random.Random, tree: Tree) -> bool:
    return _change(r, tree, _float, lambda _: r.choice((math.nan, math.inf, -math.inf, 1e300)))


def another_attribute(r: random.Random, tree: Tree) -> bool:
    return _change(r, tree, _float, lambda value: value * 1.5 + 0.25)


def path_escape(r: random.Random, tree: Tree) -> bool:
    r.choice(tree["files"])["name"] = r.choice(ESCAPES)
    return True


def another_text(r: random.Random, tree: Tree) -> bool:
    texts = ("", "x" * 5000, "a\0b", "\x1b[2J", "\u202e", "cpu", "x", "default", "é")
    return _change(r, tree, lambda _, value: isinstance(value, str), lambda _: r.choice(texts))


def swapped_fields(r: random.Random, tree: Tree) -> bool:
    """Two values of one field name, from different places."""
    path = _choose(r, tree, lambda *_: True)
    other = path and _choose(r, tree, lambda p, _: p[-1] == path[-1] and p != path and not _inside(p, path))
    if not path or not other:
        return False
    one, two = get(tree, path), get(tree, other)
    put(tree, path, two)
    put(tree, other, one)
    return True


def _inside(one: Path, other: Path) -> bool:
    shorter, longer = sorted((one, other), key=len)
    return longer[: len(shorter)] == shorter


def missing_field(r: random.Random, tree: Tree) -> bool:
    path = _choose(r, tree, lambda path, _: isinstance(path[-1], str))
    assert path is not None
    del _parent(tree, path)[path[-1]]
    return True


def unknown_field(r: random.Random, tree: Tree) -> bool:
    return _change(r, tree, lambda _, value: isinstance(value, dict), lambda value: {**value, "surprise": 1})


def _list(_: Path, value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0


def entry_dropped(r: random.Random, tree: Tree) -> bool:
    path = _choose(r, tree, _list)
    assert path is not None
    entries = get(tree, path)
    del entries[r.randrange(len(entries))]
    return True


def entry_twice(r: random.Random, tree: Tree) -> bool:
    path = _choose(r, tree, _list)
    assert path is not None
    entries = get(tree, path)
    entries.insert(r.randrange(len(entries) + 1), r.choice(entries))
    return True


def entries_shuffled(r: random.Random, tree: Tree) -> bool:
    path = _choose(r, tree, lambda _, value: isinstance(value, list) and len(value) > 1)
    assert path is not None
    r.shuffle(get(tree, path))
    return True


def edges_removed(r: random.Random, tree: Tree) -> bool:
    edges = r.choice(tree["phases"])["edges"]
    if not edges:
        return False
    keep = r.choice((0, len(edges) // 2, len(edges) - 1))
    edges[:] = sorted(r.sample(edges, keep))
    return True


def edges_turned(r: random.Random, tree: Tree) -> bool:
    edges = r.choice(tree["phases"])["edges"]
    if not edges:
        return False
    edge = r.choice(edges)
    edge[:2] = [edge[1], r.choice((edge[0], edge[1]))]
    return True


def overlapping_buffers(r: random.Random, tree: Tree) -> bool:
    buffers = r.choice(tree["phases"])["buffers"]
    one, other = r.sample(buffers, 2)
    one["offset"] = other["offset"] + r.choice((0, 0, 128, 256))
    return True


def larger_buffer(r: random.Random, tree: Tree) -> bool:
    buffer = r.choice(r.choice(tree["phases"])["buffers"])
    buffer["bytes"] = r.choice((buffer["bytes"] + 256, tree["arena_bytes"]))
    return True


def longer_lived_buffer(r: random.Random, tree: Tree) -> bool:
    phase = r.choice(tree["phases"])
    buffer = r.choice(phase["buffers"])
    buffer["first"], buffer["last"] = 0, len(phase["launches"]) - 1
    return True


def _expression(r: random.Random, levels: int) -> Tree:
    part: Tree = r.choice((1, 1 << 62, {"type": "size", "name": "tokens"}, {"type": "size", "name": "start"}))
    for _ in range(levels):
        operation = r.choice(("add", "sub", "mul", "ceil_div", "min", "max"))
        part = {"type": "binary", "operation": operation, "left": part, "right": r.choice((0, 2, 1 << 40, part))}
    return part


def wild_expression(r: random.Random, tree: Tree) -> bool:
    """A tree that shares its halves doubles with every level once written out, so it stays shallow."""

    def fits(path: Path, _: Any) -> bool:
        expression = "grid" in path or ("buffers" in path and "shape" in path) or "value" in path
        return expression and isinstance(path[-1], int)

    return _change(r, tree, fits, lambda _: _expression(r, r.choice((1, 2, 8))))


def deep_expression(r: random.Random, tree: Tree) -> bool:
    part: Tree = 1
    for _ in range(r.choice((17, 100, 900))):
        part = {"type": "binary", "operation": "mul", "left": part, "right": 1 << 40}
    return _change(r, tree, lambda path, _: path[-1] == "shape", lambda shape: [part, *shape])


def deep_nesting(r: random.Random, tree: Tree) -> bool:
    part: Tree = []
    for _ in range(r.choice((20, 300, 500))):
        part = [part]
    return _change(r, tree, lambda *_: True, lambda _: part)


def bad_ledger(r: random.Random, tree: Tree) -> bool:
    name = r.choice(("weights", "arena", "states", "total", "parameters"))
    tree["ledger"][name] = r.choice((0, 1 << 50, tree["ledger"][name] + 1))
    return True


def petabytes(r: random.Random, tree: Tree) -> bool:
    """Thousands of copies of one weight, each in its file: more than any file holds."""
    weight = r.choice(tree["weights"])
    tree["weights"] += [{**weight, "name": f"copy{i}"} for i in range(5000)]
    return True


PLAN_MUTATIONS: tuple[Callable[[random.Random, Tree], bool], ...] = (
    wrong_type,
    negative,
    huge,
    off_by_a_little,
    index_out_of_range,
    inflated_length,
    huge_shape,
    not_a_number,
    another_attribute,
    path_escape,
    another_text,
    swapped_fields,
    missing_field,
    unknown_field,
    entry_dropped,
    entry_twice,
    entries_shuffled,
    edges_removed,
    edges_turned,
    overlapping_buffers,
    larger_buffer,
    longer_lived_buffer,
    wild_expression,
    deep_expression,
    deep_nesting,
    bad_ledger,
    petabytes,
)


# Mutations of a section's msgpack.


def flipped_bits(r: random.Random, data: bytes) -> bytes:
    raw = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 8))):
        raw[r.randrange(len(raw))] ^= 1 << r.randrange(8)
    return bytes(raw)


def cut_short(r: random.Random, data: bytes) -> bytes:
    return data[: r.randrange(1, len(data))]


def something_after(r: random.Random, data: bytes) -> bytes:
    return data + r.choice((b"\0", b"\xc0", data))


def inflated_header(r: random.Random, data: bytes) -> bytes:
    """Somewhere a header that claims four billion entries or bytes, or as many as two bytes can say."""
    place = r.randrange(len(data))
    headers = (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff")
    return (
        data[:place]
        + r.choice((*headers, b"\xdc\xff\xff", b"\xde\xff\xff", b"\xc9\xff\xff\xff\xff\x05"))
        + data[place:]
    )


def nothing_but_depth(r: random.Random, data: bytes) -> bytes:
    return r.choice((b"\x91", b"\x81\xa1a", b"\x81\x91")) * r.choice((100, 5000, 1_000_000)) + b"\xc0"


def key_twice(r: random.Random, data: bytes) -> bytes:
    """The outermost map with one of its fields again at the end."""
    tree = msgpack.unpackb(data)
    key = r.choice(list(tree))
    packer = msgpack.Packer()
    head = packer.pack_map_header(len(tree) + 1)
    body = b"".join(packer.pack(part) for item in tree.items() for part in item)
    return head + body + packer.pack(key) + packer.pack(tree[key])


def not_utf8(r: random.Random, data: bytes) -> bytes:
    place = max(0, data.find(b"name")) if r.random() < 0.3 else r.randrange(len(data))
    return data[:place] + b"\xff\xfe\xc3\x28"[: r.randrange(1, 5)] + data[place + 1 :]


def longer_spelling(r: random.Random, data: bytes) -> bytes:
    """A number that one byte holds in nine, at a place that may be one."""
    places = [i for i, byte in enumerate(data) if byte < 0x80]
    place = r.choice(places)
    return data[:place] + b"\xcf" + data[place].to_bytes(8, "big") + data[place + 1 :]


SPELLING_MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    flipped_bits,
    flipped_bits,
    flipped_bits,
    cut_short,
    something_after,
    inflated_header,
    nothing_but_depth,
    key_twice,
    not_utf8,
    longer_spelling,
)


# Mutations of the container.


def flips_anywhere(r: random.Random, raw: bytes, parts: list[Part]) -> bytes:
    del parts
    return flipped_bits(r, raw)


def flips_in_the_head(r: random.Random, raw: bytes, parts: list[Part]) -> bytes:
    head = HEADER.size + len(parts) * ENTRY.size
    return flipped_bits(r, raw[:head]) + raw[head:]


def truncated(r: random.Random, raw: bytes, parts: list[Part]) -> bytes:
    del parts
    return raw[: r.choice((0, 1, 8, r.randrange(100), r.randrange(len(raw)), len(raw) - 1))]


def extended(r: random.Random, raw: bytes, parts: list[Part]) -> bytes:
    del parts
    return raw + r.choice((b"\0", bytes(4096), raw))


def sections_swapped(r: random.Random, raw: bytes, parts: list[Part]) -> bytes:
    """The bytes of two sections, or their entries in the table, or only their names."""
    del raw
    one, other = (*r.sample(range(len(parts)), 2),)
    swapped = list(parts)
    match r.randrange(3):
        case 0:
            swapped[one], swapped[other] = parts[one].holding(parts[other].data), parts[other].holding(parts[one].data)
        case 1:
            swapped[one], swapped[other] = parts[other], parts[one]
        case _:
            swapped[one] = replace(parts[one], kind=parts[other].kind)
            swapped[other] = replace(parts[other], kind=parts[one].kind)
    return put_together(placed(swapped) if r.random() < 0.7 else swapped)


def section_twice(r: random.Random, raw: bytes, parts: list[Part]) -> bytes:
    del raw
    return put_together(placed([*parts, r.choice(parts)]))


def section_dropped(r: random.Random, raw: bytes, parts: list[Part]) -> bytes:
    del raw
    kept = list(parts)
    del kept[r.randrange(len(kept))]
    return put_together(placed(kept))


def section_renamed(r: random.Random, raw: bytes, parts: list[Part]) -> bytes:
    del raw
    kinds = (b"plam", b"", b"plan\0x", b"\xff" * 16, b"PLAN", b"islands", b"ptx", b"cubin", b"constants")
    renamed = list(parts)
    place = r.randrange(len(parts))
    renamed[place] = replace(parts[place], kind=r.choice(kinds))
    return put_together(renamed)


def table_inflated(r: random.Random, raw: bytes, parts: list[Part]) -> bytes:
    """Offsets and lengths that no file has, with the digest of the table right."""
    del raw
    changed = list(parts)
    place = r.randrange(len(parts))
    part = parts[place]
    values = (*HUGE, part.length + 1, part.length + 4096, part.offset + 4096, 0, part.offset + 1)
    field = r.choice(("offset", "length"))
    changed[place] = replace(part, **{field: r.choice(values)})
    return put_together(changed)


def wrong_count(r: random.Random, raw: bytes, parts: list[Part]) -> bytes:
    del raw
    return put_together(parts, count=r.choice((0, len(parts) + 1, 7, 1 << 31, (1 << 32) - 1)))


def wrong_version(r: random.Random, raw: bytes, parts: list[Part]) -> bytes:
    del raw
    return put_together(parts, version=r.choice((0, 2, 1 << 31, (1 << 32) - 1)))


def dirty_padding(r: random.Random, raw: bytes, parts: list[Part]) -> bytes:
    changed = bytearray(raw)
    changed[r.randrange(HEADER.size + len(parts) * ENTRY.size, parts[0].offset)] = 1 + r.randrange(255)
    return bytes(changed)


FILE_MUTATIONS: tuple[Callable[[random.Random, bytes, list[Part]], bytes], ...] = (
    flips_anywhere,
    flips_anywhere,
    flips_in_the_head,
    truncated,
    extended,
    sections_swapped,
    section_twice,
    section_dropped,
    section_renamed,
    table_inflated,
    wrong_count,
    wrong_version,
    dirty_padding,
)
