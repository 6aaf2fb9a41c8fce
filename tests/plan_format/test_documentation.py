"""Does docs/plan-format.md name every struct, field and op there is?"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
import pytest

from hjgc.plan_format import container, reasons, sizes, structs
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import Op, Role

PAGE = Path(__file__).parent.parent.parent / "docs" / "plan-format.md"
MARKS = re.compile(r"(<!-- ops: .*? -->\n)(.*?)(<!-- end of ops -->)", re.DOTALL)
STRUCTS = sorted(
    {
        thing
        for module in (structs, sizes, reasons)
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, msgspec.Struct) and thing.__struct_fields__
    },
    key=lambda struct: struct.__name__,
)


@pytest.mark.parametrize("struct", STRUCTS)
def test_every_field_of_a_struct_stands_under_its_name(struct: type[msgspec.Struct]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    places = [
        match.end() for match in re.finditer(rf"^#+ .*\b{struct.__name__}\b|`{struct.__name__}`", text, re.MULTILINE)
    ]
    missing = min(
        (
            [name for name in struct.__struct_fields__ if f"`{name}`" not in text[place : place + 3500]]
            for place in places
        ),
        key=len,
        default=["the struct itself"],
    )
    assert missing == []


def test_the_kinds_of_section_and_their_limits_are_named() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for kind in container.KINDS:
        assert f"| `{kind}` |" in text
    assert f"number of sections, u32: 1 to {len(container.KINDS)} |" in text
    for kind, limit in container.MAX_SECTION_BYTES.items():
        assert re.search(rf"\| `{kind}` \|.*\| {limit >> 20} MiB \|", text)


def test_the_table_of_ops_is_what_the_ops_declare() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = "".join(f"{line}\n" for line in op_table())
    if os.environ.get("HJGC_ACCEPT"):
        PAGE.write_text(text := MARKS.sub(rf"\1{_escaped(table)}\3", text), encoding="utf-8")
    found = MARKS.search(text)
    assert found is not None
    assert found[2] == table, "an op changed: HJGC_ACCEPT=1 renews the table; look at the text around it too"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\")


def op_table() -> list[str]:
    rows = [
        f"| `{name}` | {_meaning(op)} | {_roles(op)} | {_attributes(op)} |" for name, op in sorted(all_ops().items())
    ]
    return ["| op | meaning | roles | attributes |", "| --- | --- | --- | --- |", *rows]


def _meaning(op: Op) -> str:
    return op.summary.replace("|", "\\|") + (" (on the host)" if op.host else "")


def _roles(op: Op) -> str:
    return ", ".join(_role(role) for role in op.roles)


def _role(role: Role) -> str:
    mark = {"read": "", "write": ">", "read_write": "<>"}[role.access] + ("!" if role.constant else "")
    kind = "" if role.dtype == "parameters" else f" [{' '.join(role.axes)}] {role.dtype}"
    return f"{mark}`{role.name}`{'?' if role.optional else ''}{kind}"


def _attributes(op: Op) -> str:
    return ", ".join(f"`{name}` {kind.__name__}" for name, kind in op.attributes.items())
