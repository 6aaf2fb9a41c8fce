"""Do sections lie in the file where the format says, and is a file that changes under the reader only an error?"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import pytest

from hjgc.plan_format import InputError, PlanError, container, load
from hjgc.plan_format.container import Container
from tests.plan_format.files import Part, put_together

SECTIONS = {"constants": b"c" * 5000, "plan": b"p" * 10, "cubin": b"", "debug": b"d" * 4096}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    container.write(tmp_path / "x.hjg", SECTIONS)
    return tmp_path / "x.hjg"


def test_the_header_and_table_are_what_the_documentation_says(path: Path) -> None:
    raw = path.read_bytes()
    magic, version, count, digest = struct.unpack_from("<8sII32s", raw)
    assert (magic, version, count) == (b"HJGCPLAN", 1, 3)
    assert digest == hashlib.sha256(raw[48 : 48 + 3 * 64]).digest()
    entries = [struct.unpack_from("<16sQQ32s", raw, 48 + 64 * i) for i in range(3)]
    assert [entry[:3] for entry in entries] == [
        (b"plan".ljust(16, b"\0"), 4096, 10),
        (b"debug".ljust(16, b"\0"), 8192, 4096),
        (b"constants".ljust(16, b"\0"), 12288, 5000),
    ]
    for kind, offset, length, sha256 in entries:
        data = SECTIONS[kind.rstrip(b"\0").decode()]
        assert raw[offset : offset + length] == data
        assert sha256 == hashlib.sha256(data).digest()


def test_between_the_sections_lie_zeros_and_after_the_last_nothing(path: Path) -> None:
    raw = path.read_bytes()
    assert raw[48 + 3 * 64 : 4096].strip(b"\0") == b""
    assert raw[4106:8192].strip(b"\0") == b""
    assert len(raw) == 12288 + 5000


def test_equal_sections_give_equal_bytes_in_whatever_order_they_come() -> None:
    assert container.encode(SECTIONS) == container.encode(dict(reversed(SECTIONS.items())))


def test_an_absent_section_reads_as_no_bytes_and_an_empty_one_is_absent(path: Path) -> None:
    opened = Container(path)
    assert opened.read("islands") == b""
    assert "cubin" not in opened.sections
    opened.close()


def test_what_no_reader_would_take_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(container.MAX_SECTION_BYTES, "plan", 9)
    with pytest.raises(PlanError, match="section plan: expected 1 to 9 bytes, found 10"):
        container.write(tmp_path / "x.hjg", SECTIONS)
    monkeypatch.undo()
    monkeypatch.setattr(container, "MAX_FILE_BYTES", 17287)
    with pytest.raises(PlanError, match="file: expected at most 17287 bytes, found 17288"):
        container.write(tmp_path / "x.hjg", SECTIONS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [0, 7, 8, 47, 48, 200, 4096, 12288, 17287])
def test_a_file_cut_short_is_refused(path: Path, kept: int) -> None:
    os.truncate(path, kept)
    with pytest.raises(PlanError):
        Container(path)


def test_a_file_cut_short_after_it_was_opened_is_an_error_not_the_end_of_the_process(path: Path) -> None:
    opened = Container(path)
    os.truncate(path, 13000)
    with pytest.raises(PlanError, match="section constants: expected 5000 bytes at 12288, found 712"):
        opened.read("constants")
    assert opened.read("plan") == SECTIONS["plan"]
    opened.close()


def test_bytes_that_change_after_the_file_was_opened_are_found_by_their_digest(path: Path) -> None:
    opened = Container(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"q")
    with pytest.raises(PlanError, match="section plan: expected the sha256"):
        opened.read("plan")
    opened.close()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([Part(b"debug", b"d", 4096, 1)], "section table: expected the sections plan, debug, found debug"),
        ([Part(b"plan", b"", 4096, 0)], "section plan: expected 1 to"),
        ([Part(b"plan", b"p", 8192, 1)], "section plan: expected offset 4096, found 8192"),
        ([Part(b"plan", b"p", 4096, 33 << 20)], "section plan: expected 1 to 33554432 bytes"),
        ([Part(b"plan", b"p", 4096, 2)], "section plan: expected 2 bytes at 4096, found a file of 4097"),
        ([Part(b"plan", b"pp", 4096, 1)], "file: expected the file to end at 4097, found 4098"),
        ([Part(b"plan\0x", b"p", 4096, 1)], r"section table: expected one of .*, found 'plan\\x00x'"),
        (
            [Part(b"debug", b"d", 4096, 1), Part(b"plan", b"p", 8192, 1)],
            "section table: expected the sections plan, debug, found debug, plan",
        ),
        (
            [Part(b"plan", b"p", 4096, 1), Part(b"plan", b"p", 8192, 1)],
            "section table: expected the sections plan, found plan, plan",
        ),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused(tmp_path: Path, parts: list[Part], words: str) -> None:
    path = tmp_path / "x.hjg"
    path.write_bytes(put_together(parts))
    with pytest.raises(PlanError, match=words):
        Container(path)


def test_another_kind_of_file_is_named_with_a_next_step(tmp_path: Path) -> None:
    (tmp_path / "x.hjg").write_bytes(b"\x08\x0a some onnx")
    with pytest.raises(PlanError, match=r"magic: expected a plan that starts with b'HJGCPLAN'.*is this an ONNX file"):
        load(tmp_path / "x.hjg")


def test_no_file_no_regular_file_and_no_name_are_refused_without_waiting(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="found nothing there"):
        load(tmp_path / "x.hjg")
    with pytest.raises(InputError):
        load(tmp_path)
    with pytest.raises(InputError):
        load(str(tmp_path / "x\0.hjg"))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InputError, match="no regular file"):
            load(tmp_path / "pipe")
