"""Do the steps that a GPU needs still compute what the network means?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hjgc.compiler import compile_model
from hjgc.compiler.kernels import tiles
from hjgc.plan_format import CompileError
from hjgc.plan_format.structs import Phase, RowsCall, StaticSegment
from hjgc.runtime.opening import open_session
from tests.compiler.exports import SMALL, copy_of

IDS = list(range(3, 14))


def logits(plan: Path) -> np.ndarray:
    with open_session(plan, device="cpu", capture=False) as session, session.request(logits=True) as request:
        request.prefill(IDS, {})
        rows = [request.logits()]
        for _ in range(3):
            request.decode()
            rows.append(request.logits())
    return np.stack(rows)


@pytest.mark.parametrize("variant", ["mha", "gqa", "bias", "qknorm"])
def test_a_plan_for_both_computes_on_the_cpu_what_a_plan_for_the_cpu_does(variant: str, tmp_path: Path) -> None:
    model = copy_of(variant, tmp_path)
    alone = compile_model(model, tmp_path / "cpu.hjg", **SMALL, dtype="bfloat16").path
    both = compile_model(model, tmp_path / "both.hjg", **SMALL, dtype="bfloat16", targets=("cpu", "sm_90")).path
    expected, found = logits(alone), logits(both)
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


def test_every_product_of_a_prompt_is_normalised_for_by_the_step_before_it(tmp_path: Path) -> None:
    plan = compile_model(copy_of("gqa", tmp_path), tmp_path / "plan.hjg", **SMALL, targets=("sm_90",)).plan
    prefill, decode = plan.phase("prefill"), plan.phase("decode")
    layer = ["attention_inputs", "attention", "linear_parts", "join", "gated_linear", "linear_parts", "join"]
    before, after = ["embedding", "rotary_table", "rms_norm"], ["vocabulary_logits", "caller_logits", "sample"]
    assert ops(prefill) == [*before, *layer, *layer, *after]
    assert "rms_norm" not in ops(decode) and "join" not in ops(decode)


def ops(phase: Phase) -> list[str]:
    return [launch.op for launch in phase.launches]


def test_an_op_without_a_template_is_named_and_a_slip_of_ours_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy_of("mha", tmp_path)
    with monkeypatch.context() as patch:
        patch.delitem(tiles._CHOICES, "vocabulary_logits")
        with pytest.raises(CompileError, match="expected a kernel template on sm_90 for each step, found none for voc"):
            compile_model(model, tmp_path / "plan.hjg", **SMALL, targets=("sm_90",))
    monkeypatch.delitem(tiles.DECODE_TEMPLATES, "vocabulary_logits")
    with pytest.raises(KeyError):
        compile_model(model, tmp_path / "plan.hjg", **SMALL, targets=("sm_90",))


def test_ranges_of_rows_end_where_buckets_do(tmp_path: Path) -> None:
    model = copy_of("mha", tmp_path)
    prefill = compile_model(model, tmp_path / "plan.hjg", context=64, targets=("sm_90",)).plan.phase("prefill")
    calls = [kernel for launch in prefill.launches for kernel in launch.kernels.values()]
    ends = {entry.high for call in calls if isinstance(call, RowsCall) for entry in call.ranges}
    segment = prefill.schedules[0].segments[0]
    assert isinstance(segment, StaticSegment)
    assert max(ends) == 64 and ends <= set(segment.key.buckets)


def test_kernels_follow_each_other_early_where_both_wait_by_themselves(tmp_path: Path) -> None:
    model = copy_of("mha", tmp_path)
    for target, kind in (("sm_90", "pdl"), ("sm_80", "full")):
        decode = compile_model(model, tmp_path / f"{target}.hjg", **SMALL, targets=(target,)).plan.phase("decode")
        host = next(i for i, launch in enumerate(decode.launches) if launch.op == "caller_logits")
        kinds = {edge.kind for edge in decode.edges if host not in (edge.before, edge.after)}
        assert kinds == {kind}
