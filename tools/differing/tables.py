"""What differs in the tables of two plans: who made them, model, weights, memory, sizes, bytes?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from hjgc.plan_format import encode
from hjgc.plan_format.structs import Plan, Weight, WeightFile
from hjgc.tools.console import as_data
from hjgc.tools.differing.sides import Change, Side

Value = str | int | float | None


def compare_tables(a: Side, b: Side) -> Iterator[Change]:
    one, other = a.plan, b.plan
    yield from _producer(one, other)
    yield from compare("model", "model", _flat(as_data(one.model)), _flat(as_data(other.model)))
    yield from compare("targets", "plan", {"targets": ", ".join(one.targets)}, {"targets": ", ".join(other.targets)})
    yield from compare("dtypes", "plan", as_data(one.dtypes), as_data(other.dtypes))
    yield from _weights(one, other)
    yield from _states(a, b)
    yield from _sizes(one, other)
    yield from compare("ledger", "plan", _ledger(one), _ledger(other))


def compare(area: str, item: str, before: Mapping[str, Value], after: Mapping[str, Value]) -> Iterator[Change]:
    """A change for each name whose values differ, in the order of the first."""
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name):
            yield Change(area, item, name, before.get(name), after.get(name))


def _flat(data: Mapping[str, Any]) -> dict[str, Value]:
    """Tables in tables by dotted names, lists as words."""
    flat: dict[str, Value] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": found for inner, found in _flat(value).items()}
        else:
            flat[name] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return flat


def _producer(a: Plan, b: Plan) -> Iterator[Change]:
    """The options as `option NAME`."""
    one, other = (
        {
            "hjgc": plan.producer.hjgc,
            "exporter": plan.producer.onnx_producer,
            "opset": plan.producer.opset,
            "onnx_sha256": plan.producer.onnx_sha256,
            **{f"option {name}": value for name, value in sorted(plan.producer.options.items())},
        }
        for plan in (a, b)
    )
    yield from compare("producer", "plan", one, other)


def _weights(a: Plan, b: Plan) -> Iterator[Change]:
    """By name. Of a file, `content` is its fingerprint."""
    files, others = ({file.name: file for file in plan.files} for plan in (a, b))
    for name in dict.fromkeys((*files, *others)):
        pair = [_file(table[name]) if name in table else None for table in (files, others)]
        yield from _both_or_one(f"file {name}", *pair, size="bytes")
    ours, theirs = ({weight.name: weight for weight in plan.weights} for plan in (a, b))
    for name in dict.fromkeys((*ours, *theirs)):
        pair = [_weight(plan, table[name]) if name in table else None for plan, table in ((a, ours), (b, theirs))]
        yield from _both_or_one(f"weight {name}", *pair, size="shape")


def _both_or_one(
    item: str, before: Mapping[str, Value] | None, after: Mapping[str, Value] | None, *, size: str
) -> Iterator[Change]:
    """What differs between the two; of one that the other plan lacks, its size alone."""
    if before is not None and after is not None:
        yield from compare("weights", item, before, after)
    else:
        yield Change("weights", item, size, *((each or {}).get(size) for each in (before, after)))


def _file(file: WeightFile) -> dict[str, Value]:
    content = hashlib.sha256(f"{file.head_sha256}{file.sample_sha256}".encode()).hexdigest()
    return {"bytes": file.bytes, "content": content[:16], "sha256": file.sha256}


def _weight(plan: Plan, weight: Weight) -> dict[str, Value]:
    places = [f"{plan.files[s.file].name}[{s.offset}:{s.offset + s.length}]" for s in weight.sources]
    sources = [
        f"{list(s.shape)} rows {s.slice_start or 0}:{s.slice_stop or ''}{' transposed' if s.transpose else ''}"
        for s in weight.sources
    ]
    return {
        "stored as": stored_as(weight),
        "packed as": weight.dtype,
        "shape": str(list(weight.shape)),
        "layout": f"{weight.layout} on {weight.placement}",
        "sources": ", ".join(sources),
        "place": ", ".join(places),
    }


def stored_as(weight: Weight) -> str:
    """The element types of its sources."""
    return ", ".join(dict.fromkeys(source.dtype for source in weight.sources))


def _states(a: Side, b: Side) -> Iterator[Change]:
    one, other = (
        {
            **{s.name: f"{s.kind} {s.dtype} {list(s.shape)} on {s.placement}" for s in each.plan.states},
            **{c.name: f"constant {c.dtype} {list(c.shape)}" for c in each.plan.constants},
            "values of constants": each.constants[:16],
            "parameter block": ", ".join(f"{f.name} {f.dtype}" for f in each.plan.parameters.fields),
        }
        for each in (a, b)
    )
    yield from compare("states", "plan", one, other)


def _sizes(a: Plan, b: Plan) -> Iterator[Change]:
    one, other = (
        {f"{phase.name}/{s.name}": f"{s.low} to {s.high} ({s.lives})" for phase in plan.phases for s in phase.sizes}
        for plan in (a, b)
    )
    yield from compare("sizes", "plan", one, other)


def _ledger(plan: Plan) -> dict[str, Value]:
    data = as_data(plan.ledger)
    graphs = data.pop("graph")
    return {**data, **{f"graph {name}": size for name, size in graphs.items()}}


def without_text(plan: Plan) -> Plan:
    """The plan less what only people read: the same for a plan whose template text was stripped."""
    return msgspec.structs.replace(
        plan, templates=tuple(msgspec.structs.replace(template, files=()) for template in plan.templates)
    )


def digest(plan: Plan) -> str:
    return hashlib.sha256(encode(without_text(plan))).hexdigest()
