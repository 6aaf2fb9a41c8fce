"""Which axes are worth measuring beside those that a variant has?

Only what changes nothing but speed: the shape, the parts a product is cut into and the scratch that a kernel was given
stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hjgc.compiler.kernels import hopper_tiles, template
from hjgc.compiler.kernels.declaration import Axes, AxisValue
from hjgc.compiler.kernels.tiles import scratch

STREAMS = ("decode_attention_inputs", "decode_linear", "decode_gated_linear", "vocabulary_logits")
OTHERS: Mapping[str, Mapping[str, Sequence[AxisValue]]] = {
    "decode_attention": {
        "shares": (4, 8, 16),
        "least": (32, 64, 128, 192, 256),
        "ahead": (0, 32, 64, 128),
        "block": (16, 32, 64, 128),
        "warps": (1, 2, 4, 8),
    },
    "prefill_attention": {"block_m": (16, 32, 64), "block_n": (32, 64, 128), "stages": (2, 3), "warps": (4, 8)},
    "prefill_join": {"warps": (4, 8, 16)},
    "sample": {"block": (2048, 4096, 8192), "warps": (16, 32)},
    **{name: {"ahead": (0, 64, 128, 192), "warps": (4, 8), "unroll": (False, True)} for name in STREAMS},
}
"""By template: values of one axis at a time."""


def neighbours(name: str, axes: Axes) -> list[dict[str, AxisValue]]:
    """Other axes for the same launches, all legal, in an order that is always the same."""
    found: dict[tuple[tuple[str, AxisValue], ...], dict[str, AxisValue]] = {}
    for other in _tried(name, axes):
        same_work = other.get("splits") == axes.get("splits") and _scratch(name, other) <= _scratch(name, axes)
        if other != dict(axes) and same_work and _is_legal(name, other):
            found[tuple(sorted(other.items()))] = other
    return list(found.values())


def _tried(name: str, axes: Axes) -> Iterator[dict[str, AxisValue]]:
    if name.startswith("hopper_"):
        op = template(name).op
        yield from ({**axes, **tile} for tile in hopper_tiles.other_tiles(op, axes))
        yield from ({**axes, "lead": lead} for lead in (0, 4, 8, 16))
        return
    for axis, values in OTHERS.get(name, {}).items():
        yield from ({**axes, axis: value} for value in values)
    if name in STREAMS:
        rows, block = int(axes["rows"]), int(axes["block"])
        halves = ((rows * 2, block // 2), (rows // 2, block * 2))
        shapes = (*halves, (rows, block * 2), (rows, block // 2), (rows * 2, block))
        yield from ({**axes, "rows": r, "block": b} for r, b in shapes)


def _scratch(name: str, axes: Axes) -> int:
    """Numbers of scratch that a launch must have been given."""
    return sum(shape[0] for _, shape in scratch(template(name).op, axes).values()) if name == "decode_attention" else 0


def _is_legal(name: str, axes: Axes) -> bool:
    declared = template(name)
    inside = all(declared.axes[axis].allows(value) for axis, value in axes.items())
    return inside and declared.refuse(axes) is None
