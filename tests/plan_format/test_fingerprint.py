"""Is a weight file that changed found out, and one outside the weights root never read?"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from hjgc.plan_format import InputError, PlanError
from hjgc.plan_format.fingerprint import check_weight_file, file_under_root, fingerprint
from hjgc.plan_format.structs import WeightFile

PLAN = Path("p.hjg")
SIZE = 1_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    data = bytes(i * 7 % 251 for i in range(SIZE))
    (tmp_path / "root" / "w.bin").write_bytes(data)
    (tmp_path / "elsewhere.bin").write_bytes(data)
    return tmp_path / "root"


@pytest.fixture
def expected(root: Path) -> WeightFile:
    return fingerprint(root / "w.bin", "w.bin")


def change(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_a_fingerprint_is_the_size_and_two_digests(root: Path) -> None:
    data = (root / "w.bin").read_bytes()
    blocks = [data[(SIZE - 4096) * i // 63 :][:4096] for i in range(64)]
    found = fingerprint(root / "w.bin", "w.bin", digest=True)
    assert found == WeightFile(
        "w.bin",
        SIZE,
        hashlib.sha256(data[:65536]).hexdigest(),
        hashlib.sha256(b"".join(blocks)).hexdigest(),
        hashlib.sha256(data).hexdigest(),
    )


def test_the_file_that_was_compiled_against_is_given_back(root: Path, expected: WeightFile) -> None:
    assert check_weight_file(expected, root, PLAN) == root / "w.bin"


@pytest.mark.parametrize(("offset", "field"), [(0, "head_sha256"), (65535, "head_sha256"), (SIZE - 1, "sample_sha256")])
def test_a_changed_byte_in_what_is_read_is_found(root: Path, expected: WeightFile, offset: int, field: str) -> None:
    change(root / "w.bin", offset)
    with pytest.raises(PlanError, match=rf"expected {field} .*the weights changed"):
        check_weight_file(expected, root, PLAN)


def test_a_changed_size_is_found(root: Path, expected: WeightFile) -> None:
    with (root / "w.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(PlanError, match=rf"expected bytes {SIZE}, found {SIZE + 1}"):
        check_weight_file(expected, root, PLAN)


def test_a_missing_file_and_a_folder_are_refused(root: Path) -> None:
    (root / "folder").mkdir()
    for name in ("gone.bin", "folder", "x" * 300):
        with pytest.raises(PlanError, match="found no such file"):
            file_under_root(name, root, PLAN, "$.files")


def test_a_file_that_cannot_be_read_is_an_input_error(root: Path) -> None:
    with pytest.raises(InputError, match="expected a readable weight file"):
        fingerprint(root / "gone.bin", "gone.bin")


@pytest.mark.parametrize("name", ["link.bin", "folder/elsewhere.bin", "../elsewhere.bin"])
def test_a_file_outside_the_root_is_refused_however_it_is_reached(root: Path, name: str) -> None:
    (root / "link.bin").symlink_to(root.parent / "elsewhere.bin")
    (root / "folder").symlink_to(root.parent)
    with pytest.raises(PlanError, match=r"\$\.files: expected .* inside the weights root"):
        file_under_root(name, root, PLAN, "$.files")


def test_a_file_named_absolutely_is_refused(root: Path) -> None:
    with pytest.raises(PlanError, match="inside the weights root"):
        file_under_root(str(root.parent / "elsewhere.bin"), root, PLAN, "$.files")


def test_a_link_that_stays_inside_the_root_is_followed(root: Path) -> None:
    (root / "link.bin").symlink_to("w.bin")
    assert file_under_root("link.bin", root, PLAN, "$.files") == root / "link.bin"


def test_the_root_itself_may_be_a_link(root: Path, expected: WeightFile) -> None:
    (root.parent / "other").symlink_to(root)
    assert check_weight_file(expected, root.parent / "other", PLAN).name == "w.bin"


def hugging_face_cache(folder: Path, data: bytes) -> Path:
    """A snapshot folder whose one file is a link to a blob."""
    snapshot = folder / "models--a--b" / "snapshots" / "0123abcd"
    blobs = folder / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "cafe").write_bytes(data)
    (snapshot / "w.bin").symlink_to(os.path.join("..", "..", "blobs", "cafe"))
    return snapshot


def test_a_link_to_a_blob_of_the_same_cached_model_is_followed(root: Path, expected: WeightFile) -> None:
    snapshot = hugging_face_cache(root.parent, (root / "w.bin").read_bytes())
    assert check_weight_file(expected, snapshot, PLAN) == snapshot / "w.bin"


def test_a_link_that_leaves_the_cached_model_is_not(root: Path) -> None:
    snapshot = hugging_face_cache(root.parent, b"x")
    (snapshot / "out.bin").symlink_to(root.parent / "elsewhere.bin")
    blobs = snapshot.parent.parent / "blobs"
    (blobs / "beef").symlink_to(root.parent / "elsewhere.bin")
    (snapshot / "twice.bin").symlink_to(os.path.join("..", "..", "blobs", "beef"))
    for name in ("out.bin", "twice.bin"):
        with pytest.raises(PlanError, match="inside the weights root"):
            file_under_root(name, snapshot, PLAN, "$.files")
