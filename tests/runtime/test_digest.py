"""Can every driver compile the kernels that make digests, and are digests what they must be?"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import triton

from hjgc.runtime.backends.cuda_digest import PLACES, Digests, item_of, text
from tests.runtime.digests import digest
from tests.runtime.fake_driver import FakeDriver

PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_the_kernels_are_code_for_every_chip(arch: str, tmp_path: Path) -> None:
    (tmp_path / "digest.ptx").write_text(text())
    assembler = PTXAS if int(arch[3:]) < 100 else PTXAS.with_name("ptxas-blackwell")
    command = [assembler, f"-arch={arch}", "digest.ptx", "-o", "digest.cubin"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    code = (tmp_path / "digest.cubin").read_bytes()
    assert b"digest_words" in code and b"digest_bytes" in code


def test_a_digest_depends_on_every_byte_and_on_its_place() -> None:
    data = np.zeros(64, np.uint8)
    found = {digest(data, 4), digest(data[:32], 4), digest(np.roll(data + np.arange(64, dtype=np.uint8), 4), 4)}
    for place in range(64):
        changed = data.copy()
        changed[place] = 1
        found |= {digest(changed, 4), digest(changed, 1)}
    assert len(found) == 3 + 2 * 64


def test_words_of_four_bytes_are_taken_only_where_everything_is_a_multiple_of_four() -> None:
    assert item_of((64, 32, 8, 3)) == 4
    assert [item_of(place) for place in ((65, 32, 8, 3), (64, 34, 8, 3), (64, 32, 6, 3))] == [1, 1, 1]


def test_more_places_than_sums_are_taken_in_turns() -> None:
    driver = FakeDriver()
    memory = driver.allocate(4 * PLACES + 8)
    driver.write(memory, np.arange(PLACES + 2, dtype=np.uint32).view(np.uint8), "stream")
    digests = Digests(driver, "stream")  # type: ignore[arg-type]
    found = digests.of([(memory + 4 * i, 4, 4, 1) for i in range(PLACES + 2)])
    words = np.arange(PLACES + 2, dtype=np.uint32)
    assert found == [digest(words[i : i + 1].view(np.uint8), 4) for i in range(PLACES + 2)]
    digests.close()
    assert driver.log[-2:] == ["unload digests", "free"]
