"""Do the files of other exporters compute the same on a GPU as on the CPU: rings, numbers in blocks, weights inside?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hjgc.compiler import compile_model
from hjgc.runtime.opening import open_session
from hjgc.runtime.session import Session
from tests.compiler.dialects.fixtures import write_fixture

pytestmark = pytest.mark.gpu
CONTEXT, STEPS = 1024, 40
TOLERANCE = 4e-3
"""Of the largest logit: two computations in float16, whose sums are in another order."""
NAMES = (
    "dynamo4-llama2-inline",  # weights at odd offsets of the model's own file
    "dynamo5-mistral",  # a ring of 544 rows
    "genai4-llama2-cpu-int4-asym",  # zero points
    "genai4-llama2-cpu-int4-qdq",  # blocks along the rows, signed
    "genai5-qwen3-cpu-int4-block128",  # rows filled up, a tied table
    "genai5-qwen3-cuda-fp16",  # norms inside of attention
    "ts4-llama3",
)


def logits(session: Session, ids: list[int]) -> NDArray[np.float32]:
    """After the prompt and after each of the steps [STEPS + 1, V]."""
    with session.request(logits=True) as request:
        request.prefill(ids, {})
        rows = [request.logits().copy()]
        for _ in range(STEPS):
            request.decode()
            rows.append(request.logits().copy())
    return np.stack(rows)


def same_so_far(one: NDArray[np.float32], other: NDArray[np.float32]) -> int:
    """How many steps come before greedy choices part, which a near tie may make them do."""
    parted = np.flatnonzero(one.argmax(1) != other.argmax(1))
    return int(parted[0]) + 1 if len(parted) else len(one)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_of_another_exporters_file_gives_the_logits_of_the_cpu_plainly_and_from_graphs(
    name: str, tmp_path: Path
) -> None:
    model = write_fixture(name, tmp_path)
    plan = compile_model(
        model, tmp_path / "plan.hjg", targets=("cpu", "sm_90"), context=CONTEXT, dtype="float16", portable=False
    ).path
    prompts = [np.random.default_rng(n).integers(3, 150, n).tolist() for n in (12, 700)]  # the second goes round
    with open_session(plan, device="cpu") as session:
        expected = [logits(session, ids) for ids in prompts]
    with open_session(plan, device="cuda") as session:
        plain = [logits(session, ids) for ids in prompts]
        session.wait_captured()
        replayed = [logits(session, ids) for ids in prompts]
        states = {entry["state"] for entry in session.report()["segments"] if entry.get("plain_runs")}
    for want, found, again in zip(expected, plain, replayed, strict=True):
        steps = same_so_far(want, found)
        assert steps > STEPS // 4
        assert np.abs(want[:steps] - found[:steps]).max() <= TOLERANCE * np.abs(want).max()
        assert np.array_equal(found, again)
    assert states == {"PROMOTED"}
