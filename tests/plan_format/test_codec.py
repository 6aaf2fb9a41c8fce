"""Does a plan come back from its bytes as it was, and is there only one way to write it?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from hjgc.plan_format import DebugMap, InputError, Plan, PlanError, decode, encode, load, save
from hjgc.plan_format.structs import LaunchDebug, Note, PhaseDebug, TemplateFile
from tests.plan_format.device_plan import TEXT, device_plan, device_sections
from tests.plan_format.files import take_apart, with_section
from tests.plans import CONSTANTS, small_plan

replace = msgspec.structs.replace
PATH = Path("p.hjg")
ENDLESS = 1_000_000


def debug_of(plan: Plan) -> DebugMap:
    phases = tuple(PhaseDebug(p.name, tuple(LaunchDebug((x.name,)) for x in p.launches)) for p in plan.phases)
    return DebugMap(phases, (Note("rule", "node", "why"),))


def test_a_plan_comes_back_equal_with_its_sections_and_debug_map(tmp_path: Path) -> None:
    plan = small_plan()
    save(tmp_path / "p.hjg", plan, debug=debug_of(plan), sections={"constants": CONSTANTS})
    with load(tmp_path / "p.hjg") as file:
        assert file.plan == plan
        assert file.debug() == debug_of(plan)
        assert file.section("constants") == CONSTANTS


def test_a_device_plan_comes_back_equal(device: Path) -> None:
    with load(device) as file:
        assert file.plan == device_plan()
        assert file.debug() is None
        assert file.section("cubin") == device_sections()["cubin"]


def test_a_compiled_plan_written_again_is_the_same_file(compiled: Path, tmp_path: Path) -> None:
    with load(compiled) as file:
        save(tmp_path / "p.hjg", file.plan, debug=file.debug(), sections={"constants": file.section("constants")})
    assert (tmp_path / "p.hjg").read_bytes() == compiled.read_bytes()


def test_the_order_of_maps_does_not_show_in_the_bytes() -> None:
    plan = device_plan()
    producer = msgspec.structs.replace(plan.producer, options={"b": "2", "a": "1"})
    other = msgspec.structs.replace(plan.producer, options={"a": "1", "b": "2"})
    one, two = (encode(msgspec.structs.replace(plan, producer=p)) for p in (producer, other))
    assert one == two


def test_an_integer_saved_where_a_float_belongs_is_one_for_every_reader(tmp_path: Path) -> None:
    plan = small_plan()
    plan = msgspec.structs.replace(plan, model=msgspec.structs.replace(plan.model, generation={"top_k": 40}))
    save(tmp_path / "p.hjg", plan, sections={"constants": CONSTANTS})
    with load(tmp_path / "p.hjg") as file:
        assert repr(file.plan.model.generation) == "{'top_k': 40.0}"


def test_a_plan_that_would_not_load_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"\$\.constants\[0\]\.offset"):
        save(tmp_path / "p.hjg", small_plan(), sections={})
    with pytest.raises(PlanError, match=r"debug \$\.phases"):
        save(tmp_path / "p.hjg", small_plan(), debug=DebugMap(()), sections={"constants": CONSTANTS})
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        save(tmp_path / "no" / "p.hjg", small_plan(), sections={"constants": CONSTANTS})
    assert list(tmp_path.iterdir()) == []


def in_tree(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def change_bytes(data: bytes) -> bytes:
        tree = msgpack.unpackb(data)
        change(tree)
        return msgpack.packb(tree) or b""

    return change_bytes


def field_again(data: bytes) -> bytes:
    """The map of 16 fields with the first of them once more at the end."""
    assert data[:3] == b"\xde\x00\x10"
    return b"\xde\x00\x11" + data[3:] + b"\xa6format\xa31.0"


SPELLINGS: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("nothing", lambda data: b"", "expected msgpack"),
    ("a byte too many", lambda data: data + b"\0", r"section plan: expected \d+ bytes, found \d+"),
    ("a byte too few", lambda data: data[:-1], "section plan: expected msgpack"),
    ("a list that is not there", lambda data: b"\xdd\xff\xff\xff\xff", "expected msgpack, found OutOfData"),
    ("text that is not there", lambda data: b"\xdb\xff\xff\xff\xff", "section plan: expected msgpack, found OutOfData"),
    ("nothing but depth", lambda data: b"\x91" * ENDLESS + b"\xc0", "section plan: expected msgpack, found StackError"),
    ("depth within the walk's reach", lambda data: b"\x91" * 900 + b"\xc0", r"section plan: Expected `object`"),
    ("a field twice", field_again, "section plan: expected the one spelling of this plan, found another from byte 2"),
    ("fields in another order", in_tree(lambda t: t.update(format=t.pop("format"))), "expected the one spelling"),
    ("a default spelt out", in_tree(lambda t: t["weights"][0].update(layout="row_major")), "expected the one spelling"),
    ("an unknown field", in_tree(lambda t: t.update(surprise=1)), "unknown field `surprise`"),
    ("a field missing", in_tree(lambda t: t.pop("states")), "missing required field `states`"),
    ("a number for a name", in_tree(lambda t: t["weights"][3].update(name=5)), r"\$\.weights\[3\]\.name"),
    ("a float for a number", in_tree(lambda t: t["weights"][3].update(bytes=5.0)), "spelling|Expected `int`"),
    ("a truth for a number", in_tree(lambda t: t["weights"][3].update(bytes=True)), r"Expected `int`, got `bool`"),
    ("a moment for a number", in_tree(lambda t: t.update(arena_bytes=msgpack.Timestamp(1))), "Expected `int`"),
    ("an extension for text", in_tree(lambda t: t.update(format=msgpack.ExtType(7, b"x"))), "Expected `str`"),
    ("bytes for text", in_tree(lambda t: t.update(format=b"1.0")), "Expected `str`, got `bytes`"),
    ("no UTF-8", lambda data: data.replace(b"small", b"\xff\xfe\xfd\xfc\xfb", 1), "section plan: "),
    (
        "an unknown kind of call",
        in_tree(lambda t: t["phases"][0]["launches"][0]["kernels"].update(cpu={"type": "\x1b" * 900})),
        r"Invalid value '\\x1b",
    ),
]


@pytest.mark.parametrize(("change", "words"), [pytest.param(*row[1:], id=row[0]) for row in SPELLINGS])
def test_there_is_one_way_to_write_a_plan(small: Path, tmp_path: Path, change: Any, words: str) -> None:
    parts = take_apart(small)
    with pytest.raises(PlanError, match=words) as caught:
        decode(change(parts[0].data), Plan, PATH)
    assert len(str(caught.value)) < 2000
    broken = tmp_path / "p.hjg"
    broken.write_bytes(with_section(parts, b"plan", change(parts[0].data)))
    with pytest.raises(PlanError):
        load(broken)


def test_expressions_nested_past_what_python_recurses_are_refused() -> None:
    levels = b"\x84\xa4type\xa6binary\xa9operation\xa3add\xa4left" * 5000
    with pytest.raises(PlanError, match="section plan"):
        decode(levels + b"\x01" + b"\xa5right\x01" * 5000, Plan, PATH)


DEBUG: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("a phase missing", lambda t: t["phases"].pop(), r"debug \$\.phases: expected"),
    ("phases in another order", lambda t: t["phases"].reverse(), r"debug \$\.phases"),
    ("a launch missing", lambda t: t["phases"][0]["launches"].pop(), r"debug \$\.phases"),
    ("a node with an escape", lambda t: t["phases"][0]["launches"][1].update(nodes=["\x1b"]), r"launches\[1\]\.nodes"),
    ("a role with an escape", lambda t: t["phases"][0]["launches"][1].update(values={"\x1b": ""}), r"\.values"),
    ("a value with an escape", lambda t: t["phases"][0]["launches"][1].update(values={"y": "\n"}), r"\.values"),
    ("a note with an escape", lambda t: t["notes"][0].update(why="\x07"), r"debug \$\.notes\[0\]\.why"),
]


@pytest.mark.parametrize(("change", "words"), [pytest.param(*row[1:], id=row[0]) for row in DEBUG])
def test_a_debug_map_that_does_not_belong_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    path, plan = tmp_path / "p.hjg", small_plan()
    save(path, plan, debug=debug_of(plan), sections={"constants": CONSTANTS})
    parts = take_apart(path)
    path.write_bytes(with_section(parts, b"debug", in_tree(change)(parts[1].data)))
    with load(path) as file, pytest.raises(PlanError, match=words):
        file.debug()


def test_the_text_of_a_template_is_read_file_by_file(device: Path) -> None:
    with load(device) as file:
        assert file.template_text(0) == {"helper.py": TEXT[:10], "rms_norm.py": TEXT[10:]}


def test_a_template_may_come_without_its_text(tmp_path: Path) -> None:
    plan = device_plan()
    bare = replace(plan, templates=(replace(plan.templates[0], files=()),))
    save(tmp_path / "plan.hjg", bare, sections={"cubin": device_sections()["cubin"]})
    (tmp_path / "norms.bin").write_bytes(b"")
    with load(tmp_path / "plan.hjg") as file:
        assert file.template_text(0) == {}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"digest": "0" * 64}, r"templates\[0\]\.digest: expected text with the sha256 0000"),
        (
            {"files": (TemplateFile("rms_norm.py", 0, 10, "0" * 64),)},
            r"templates\[0\]\.files\[0\]\.sha256: expected text",
        ),
    ],
)
def test_text_that_is_not_the_templates_is_refused_when_it_is_read(
    change: dict[str, Any], place: str, tmp_path: Path
) -> None:
    plan = device_plan()
    save(
        tmp_path / "plan.hjg",
        replace(plan, templates=(replace(plan.templates[0], **change),)),
        sections=device_sections(),
    )
    with load(tmp_path / "plan.hjg") as file, pytest.raises(PlanError, match=place):
        file.template_text(0)
