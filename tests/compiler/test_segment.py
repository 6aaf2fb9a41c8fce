"""Is a phase cut only where the host must look, whatever the network?"""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from hjgc.compiler import compile_model
from hjgc.compiler.classify import Dynamic, Static, classify
from hjgc.compiler.program import Program, Step, Tensor
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.sizes import Size, SizeDeclaration
from hjgc.plan_format.structs import DynamicSegment, Phase, Plan, Segment, StaticSegment
from tests.compiler.exports import SMALL, VARIANTS, exported

PER_LAYER = ["attention_inputs", "attention", "linear", "gated_linear", "linear"]


@cache
def plan_of(variant: str) -> Plan:
    with TemporaryDirectory() as folder:
        output = Path(folder) / "plan.hjg"
        return compile_model(exported(variant) / "model.onnx", output, **SMALL).plan


def segments(phase: Phase, schedule: str) -> tuple[Segment, ...]:
    (found,) = (entry.segments for entry in phase.schedules if entry.name == schedule)
    return found


def ops(phase: Phase, segment: Segment) -> list[str]:
    return [phase.launches[i].op for i in segment.launches]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_phase_is_one_static_segment_from_the_embedding_to_the_sampled_token(variant: str, phase: str) -> None:
    found = plan_of(variant).phase(phase)
    (segment,) = segments(found, "default")
    assert isinstance(segment, StaticSegment)
    expected = ["embedding", "rotary_table", *PER_LAYER * 2, "vocabulary_logits", "sample"]
    assert ops(found, segment) == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_layer_is_five_launches_in_both_phases(variant: str) -> None:
    for phase in plan_of(variant).phases:
        layers = Counter(
            launch.name.rsplit(".", 1)[0] for launch in phase.launches if launch.name.startswith("layers.")
        )
        assert layers == {"layers.0": 5, "layers.1": 5}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_callers_logits_processor_makes_one_cut_and_the_reason_says_who_asked(variant: str, phase: str) -> None:
    found = plan_of(variant).phase(phase)
    before, cut, after = segments(found, "logits_processor")
    assert isinstance(before, StaticSegment) and isinstance(after, StaticSegment)
    assert (ops(found, before)[-1], ops(found, after)) == ("vocabulary_logits", ["sample"])
    assert isinstance(cut, DynamicSegment)
    assert ops(found, cut) == ["caller_logits"]
    (reason,) = cut.reasons
    assert (reason.launch, reason.code) == (cut.launches[0], ReasonCode.HOST_READ)
    assert reason.chain == ("caller_logits", "ONNX value logits", "the request's logits_processor")


def test_a_chunk_of_a_prompt_that_is_not_the_last_stops_before_the_logits() -> None:
    found = plan_of("gqa").phase("prefill")
    (segment,) = segments(found, "prompt_only")
    assert ops(found, segment) == ["embedding", "rotary_table", *PER_LAYER * 2]
    assert [entry.name for entry in plan_of("gqa").phase("decode").schedules] == ["default", "logits_processor"]


def test_decode_has_one_graph_and_prefill_one_a_bucket() -> None:
    plan = plan_of("gqa")
    (decode,) = segments(plan.phase("decode"), "default")
    (prefill,) = segments(plan.phase("prefill"), "default")
    assert isinstance(decode, StaticSegment) and isinstance(prefill, StaticSegment)
    assert (decode.key.sizes, decode.key.buckets) == ((), (1,))
    assert (prefill.key.sizes, prefill.key.buckets) == (("tokens",), (1, 2, 3, 4, 6, 8, 12, 16))


def test_a_step_whose_size_nobody_bounds_is_dynamic_and_names_the_size() -> None:
    rows = (SizeDeclaration("tokens", 1, 8, "key"),)
    x, y = (Tensor(name, "buffer", "float32", (Size(size), 4)) for name, size in (("x", "tokens"), ("y", "found")))
    norm = Tensor("norm", "weight", "float32", (4,))
    bounded = Step("a", "rms_norm", {"x": x, "weight": norm, "y": x}, {"epsilon": 1e-5})
    free = Step("b", "rms_norm", {"x": x, "weight": norm, "y": y}, {"epsilon": 1e-5}, nodes=("node_7",))
    verdicts = classify(Program("prefill", rows, (8,), (bounded, free)))
    assert verdicts == (Static(("tokens",), ()), Dynamic(ReasonCode.UNBOUNDED_SIZE, ("b", "node_7", "found")))
