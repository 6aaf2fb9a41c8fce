"""Why do two plans differ: which option, type, exporter, model, size range or version is behind all the rest?

Each question is asked of what went into the two plans. What explains another difference takes its place: a weight that
is stored in another type changes the ONNX file and the file of weights too, and neither is a cause of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hjgc.plan_format.structs import Plan, Weight, WeightFile
from hjgc.tools.differing.options import changed_options
from hjgc.tools.differing.sides import Aligned, Change, Side
from hjgc.tools.differing.tables import Value, stored_as

IN_ONNX = ("exporter", "opset", "weight_dtype", "weight_files", "model")
"""Causes that change the bytes of an ONNX file."""
MOST_NAMED = 3


@dataclass(frozen=True)
class Cause:
    """`kind` for programs; `name`, `before` and `after` for people."""

    kind: str
    name: str
    before: Value
    after: Value


def find_causes(a: Side, b: Side, phases: tuple[Aligned, ...], changes: Sequence[Change]) -> tuple[Cause, ...]:
    """Those that a person can do something about first. Empty only if nothing changed."""
    one, other = a.plan, b.plan
    exporter = tuple(_exporter(one, other))
    found = [*_options(one, other), *_stored(one, other, exporter), *exporter, *_model(changes, exporter)]
    found += _files(one, other, found)
    explained = _follows_hjgc(one, other) or any(cause.kind in IN_ONNX for cause in found)
    if one.producer.onnx_sha256 != other.producer.onnx_sha256 and not explained:
        found.append(_onnx(a, b, phases))
    if one.producer.hjgc != other.producer.hjgc:
        found.append(Cause("hjgc", "hjgc version", one.producer.hjgc, other.producer.hjgc))
    return tuple(found or _inside(changes))


def followers(a: Side, b: Side) -> dict[str, str]:
    """Options that changed on their own account by nobody's hand, and what they follow from."""
    _, follows = changed_options(a.plan, b.plan)
    return {f"option {name}": why for name, why in follows.items()}


def _options(a: Plan, b: Plan) -> Iterator[Cause]:
    given, _ = changed_options(a, b)
    for name in given:
        before, after = (plan.producer.options.get(name) for plan in (a, b))
        if name == "digest":
            before, after = ("off" if all(f.sha256 is None for f in plan.files) else "on" for plan in (a, b))
        yield Cause("option", f"option {name}", before, after)


def _exporter(a: Plan, b: Plan) -> Iterator[Cause]:
    """Another exporter, which chooses its own opset; or another opset of the same one. Our own exporter is part of
    hjgc, and its version follows hjgc's."""
    one, other = a.producer, b.producer
    if _follows_hjgc(a, b):
        return
    if one.onnx_producer != other.onnx_producer:
        both = one.opset != other.opset
        before, after = (f"{p.onnx_producer}, opset {p.opset}" if both else p.onnx_producer for p in (one, other))
        yield Cause("exporter", "exporter", before, after)
    elif one.opset != other.opset:
        yield Cause("opset", "opset", one.opset, other.opset)


def _follows_hjgc(a: Plan, b: Plan) -> bool:
    """Both files were written by the exporter of the hjgc that compiled them, and these are two versions."""
    own = all(plan.producer.onnx_producer == f"hjgc {plan.producer.hjgc}" for plan in (a, b))
    return own and a.producer.hjgc != b.producer.hjgc


def _stored(a: Plan, b: Plan, exporter: tuple[Cause, ...]) -> Iterator[Cause]:
    """Weights stored in another type, if not by another exporter; a type of the plan that no option explains."""
    pairs = _pairs(a, b)
    stored = [] if exporter else [(x, y) for x, y in pairs if stored_as(x) != stored_as(y)]
    if stored:
        before, after = (_dtypes(stored_as(pair[i]) for pair in stored) for i in (0, 1))
        yield Cause("weight_dtype", f"{_named(stored, len(pairs))}, stored as", before, after)
    if a.producer.options.get("dtype") == b.producer.options.get("dtype"):
        for role in a.dtypes.__struct_fields__:
            before, after = getattr(a.dtypes, role), getattr(b.dtypes, role)
            if before != after:
                yield Cause("dtype", f"element type of {role}", before, after)


def _pairs(a: Plan, b: Plan) -> list[tuple[Weight, Weight]]:
    others = {weight.name: weight for weight in b.weights}
    return [(weight, others[weight.name]) for weight in a.weights if weight.name in others]


def _dtypes(found: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(found))


def _named(pairs: Sequence[tuple[Weight, Weight]], of: int) -> str:
    names = [one.name for one, _ in pairs]
    if len(names) == 1:
        return f"weight {names[0]}"
    if len(names) == of:
        return f"all {of} weights"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"weights {', '.join(names[:MOST_NAMED])}{more}"


def _model(changes: Sequence[Change], exporter: tuple[Cause, ...]) -> Iterator[Cause]:
    """Another network, or other files beside it. The context is an option; name and kind are the exporter's words."""
    left_out = {"context", "name", "architecture"} if exporter else {"context"}
    fields = [c for c in changes if c.area == "model" and c.field not in left_out]
    shapes = [c for c in changes if c.area == "weights" and c.item.startswith("weight ") and c.field == "shape"]
    if fields:
        yield Cause(
            "model",
            f"model: {', '.join(change.field for change in fields)}",
            ", ".join(str(change.before) for change in fields),
            ", ".join(str(change.after) for change in fields),
        )
    elif shapes and not exporter:
        more = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
        yield Cause("model", f"shape of {shapes[0].item}{more}", shapes[0].before, shapes[0].after)


def _files(a: Plan, b: Plan, found: Sequence[Cause]) -> Iterator[Cause]:
    """The same file with other values in it; or other files, where nothing so far says why."""
    files = {file.name: file for file in b.files}
    pairs = [(file, files[file.name]) for file in a.files if file.name in files]
    values = [one.name for one, other in pairs if one.bytes == other.bytes and _prints(one) != _prints(other)]
    if values and all(cause.kind != "weight_dtype" for cause in found):
        yield Cause("weights", f"values in {', '.join(values[:MOST_NAMED])}", None, None)
    explained = any(cause.kind in ("weight_dtype", "exporter", "model") for cause in found)
    before, after = (", ".join(f"{file.name} ({file.bytes} bytes)" for file in plan.files) for plan in (a, b))
    if before != after and not explained:
        yield Cause("weight_files", "files of weights", before, after)


def _prints(file: WeightFile) -> tuple[str, str]:
    return file.head_sha256, file.sample_sha256


def _onnx(a: Side, b: Side, phases: tuple[Aligned, ...]) -> Cause:
    """The nodes that only one model has, as far as launches stand for them."""
    one, other = (_nodes(phases, first) for first in (True, False))
    gone, new = [n for n in one if n not in other], [n for n in other if n not in one]
    if a.debug is not None and b.debug is not None and (gone or new):
        return Cause("onnx_graph", "nodes of the ONNX graph", _some(gone), _some(new))
    return Cause("onnx_file", "ONNX file", a.plan.producer.onnx_sha256[:16], b.plan.producer.onnx_sha256[:16])


def _nodes(phases: tuple[Aligned, ...], first: bool) -> dict[str, None]:
    views = [phase.a if first else phase.b for phase in phases]
    return dict.fromkeys(node for seen in views for launch in seen.debug for node in launch.nodes)


def _some(nodes: list[str]) -> str | None:
    more = f" and {len(nodes) - MOST_NAMED} more" if len(nodes) > MOST_NAMED else ""
    return f"{', '.join(nodes[:MOST_NAMED])}{more}" if nodes else None


def _inside(changes: Sequence[Change]) -> Iterator[Cause]:
    """Where both were made from the same by the same: what a plan says of itself, the most telling first."""
    for kind, area, name in (
        ("size_range", "sizes", "size range"),
        ("size_range", "buckets", "buckets"),
        ("templates", "templates", "text of template"),
        ("kernel_axes", "variants", "kernels"),
        ("device_code", "code", "device code"),
        ("constants", "states", "states and constants"),
    ):
        found = [change for change in changes if change.area == area]
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            yield Cause(kind, f"{name}: {found[0].item} {found[0].field}{more}", found[0].before, found[0].after)
            return
    areas = ", ".join(dict.fromkeys(change.area for change in changes))
    if areas:
        yield Cause("plan", f"the plan itself was changed after it was compiled: {areas}", None, None)
