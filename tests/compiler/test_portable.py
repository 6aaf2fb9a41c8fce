"""What does a plan for a GPU carry for other GPUs, for longer prompts, and for people: portable code, variants that are
not built, the text of templates?"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest

from hjgc.compiler import build_worker, compile_model
from hjgc.compiler.build_variants import launch_abi
from hjgc.compiler.build_worker import answer
from hjgc.compiler.kernels import FOLDER, template_digest, template_names, triton_is_missing
from hjgc.compiler.kernels.prefill_choice import range_ends
from hjgc.plan_format import InputError, Plan, load
from hjgc.plan_format.building import build_request
from hjgc.plan_format.structs import RowsCall, TemplateCall, template_calls
from hjgc.runtime.retarget import for_chip
from tests.compiler.exports import copy_of

pytest.importorskip("triton")

PROMPT, CONTEXT = (1, 20), 128
BUILT = 32
"""The end of the range that 20 rows lie in."""


@cache
def compiled(place: str = "one", *, portable: bool = True) -> tuple[Plan, bytes, dict[str, Any]]:
    """The plan, its bytes, and the text of its templates."""
    with TemporaryDirectory() as folder:
        model = copy_of("gqa", Path(folder) / place)
        options = {"targets": ("sm_90",), "prompt": PROMPT, "context": CONTEXT, "portable": portable}
        path = compile_model(model, model.with_name("plan.hjg"), **options).path  # type: ignore[arg-type]
        with load(path) as file:
            texts = {template.name: file.template_text(i) for i, template in enumerate(file.plan.templates)}
            return file.plan, path.read_bytes(), texts


def test_a_plan_with_portable_code_is_the_same_from_two_folders() -> None:
    assert compiled("one")[1] == compiled("some/where else")[1]


def test_portable_code_is_ptx_that_no_chip_is_too_late_for_and_serves_all_rows() -> None:
    plan, data, _ = compiled()
    assert plan.targets == ("sm_90", "compute_80")
    portable = [variant for variant in plan.variants if variant.target == "compute_80"]
    assert all(v.built is not None and v.built.code.section == "ptx" and not v.pdl for v in portable)
    assert b".target sm_80\n" in data
    for phase in plan.phases:
        kernels = [launch.kernels["compute_80"] for launch in phase.launches]
        assert not any(isinstance(kernel, RowsCall) for kernel in kernels)


def test_portable_code_can_be_left_out() -> None:
    plan, data, _ = compiled(portable=False)
    assert plan.targets == ("sm_90",)
    assert b".target sm_80\n" not in data
    assert len(data) < len(compiled()[1])


def test_a_plan_for_the_cpu_alone_has_no_portable_code(tmp_path: Path) -> None:
    model = copy_of("gqa", tmp_path)
    assert compile_model(model, tmp_path / "plan.hjg", context=64).plan.targets == ("cpu",)


def test_ranges_past_the_longest_prompt_are_declared_and_not_built() -> None:
    plan, _, _ = compiled()
    prefill = plan.phase("prefill")
    assert next(size.high for size in prefill.sizes if size.name == "tokens") == CONTEXT
    found: dict[int, set[bool]] = {}
    for launch in prefill.launches:
        kernel = launch.kernels["sm_90"]
        for entry in kernel.ranges if isinstance(kernel, RowsCall) else ():
            found.setdefault(entry.high, set()).add(plan.variants[entry.call.variant].built is None)
    assert sorted(found) == list(range_ends("sm_90", CONTEXT))
    assert BUILT in found
    assert {high for high, unbuilt in found.items() if True in unbuilt} == {high for high in found if high > BUILT}
    fixed = [kernel for launch in prefill.launches if isinstance(kernel := launch.kernels["sm_90"], TemplateCall)]
    assert all(plan.variants[kernel.variant].built is not None for kernel in fixed)


def test_every_kernel_of_a_decode_step_is_built() -> None:
    plan, _, _ = compiled()
    calls = [
        call for launch in plan.phase("decode").launches for k in launch.kernels.values() for call in template_calls(k)
    ]
    assert calls
    assert all(plan.variants[call.variant].built is not None for call in calls)


def test_the_text_of_every_template_is_the_installed_one() -> None:
    plan, data, texts = compiled()
    for template in plan.templates:
        assert template.digest == template_digest(template.name)
        assert texts[template.name] == {name: (FOLDER / name).read_bytes() for name in texts[template.name]}
        assert f"{template.name}.py" in texts[template.name]
    assert data.count((FOLDER / "declaration.py").read_bytes()) == 1, "helpers are shared"


def test_the_launch_abi_of_what_is_not_built_is_what_building_it_gives() -> None:
    plan, _, _ = compiled()
    index = next(i for i, variant in enumerate(plan.variants) if variant.built is None)
    found = answer(_line(plan, index)).built
    assert found is not None
    assert (found.parameters, found.pdl) == (plan.variants[index].parameters, plan.variants[index].pdl)
    assert found.parameters == launch_abi(plan.templates[plan.variants[index].template].name, plan.variants[index].axes)


def _line(plan: Plan, index: int) -> bytes:
    return msgspec.json.encode(build_request(plan, index))


@pytest.mark.parametrize("chip", ["sm_86", "sm_100"])
def test_what_a_chip_outside_the_plan_needs_can_be_built(chip: str) -> None:
    derived, ahead = for_chip(compiled()[0], chip)
    assert ahead
    for index in ahead[:2]:
        built = answer(_line(derived, index)).built
        assert built is not None
        assert built.parameters == derived.variants[index].parameters
        assert built.pdl == derived.variants[index].pdl


def test_a_template_that_was_changed_since_is_not_built() -> None:
    plan, _, _ = compiled()
    request = build_request(plan, 0)
    refusal = answer(_line(plan, 0).replace((request.digest or "").encode(), b"0" * 64)).refusal
    assert refusal is not None
    assert (refusal.fault, refusal.place) == ("template", f"template {request.template}")


def test_templates_for_one_chip_only_say_so() -> None:
    from hjgc.compiler.build_variants import _Tables  # pyright: ignore[reportPrivateUsage]

    tables = _Tables()
    for name in template_names():
        tables._template(name, {})
    assert {t.name for t in tables.templates if t.only} == {n for n in template_names() if n.startswith("hopper_")}
    assert {t.only for t in tables.templates} == {None, "sm_90"}


def test_a_target_that_does_not_exist_is_refused_with_the_chips_there_are(tmp_path: Path) -> None:
    model = copy_of("gqa", tmp_path)
    with pytest.raises(InputError, match=r"expected cpu or sm_NN, found 'sm_42'; NN is one of 80, 86"):
        compile_model(model, tmp_path / "plan.hjg", targets=("sm_42",))


def test_the_process_that_builds_says_when_what_it_needs_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *rest: object) -> None:
        raise triton_is_missing(name)

    monkeypatch.setattr(build_worker, "build", missing)
    monkeypatch.setattr(build_worker, "find_spec", lambda name: None)
    refusal = answer(_line(compiled()[0], 0)).refusal
    assert refusal is not None
    assert refusal.fault == "extra"
    assert str(refusal).endswith("building it needs triton, which is not installed; pip install 'hjgc[aot]'")
