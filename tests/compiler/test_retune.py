"""Is a plan with other axes for a variant a legal plan of the same network, and what is tried at all?"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hjgc import plan_format
from hjgc.compiler import compile_model
from hjgc.compiler.build_variants import build_all
from hjgc.compiler.kernels.neighbours import neighbours
from hjgc.compiler.retune import check_templates, gathered, variant_key, with_axes
from hjgc.plan_format import Plan, PlanError
from hjgc.plan_format.structs import template_calls
from tests.compiler.exports import SMALL, copy_of


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = copy_of("gqa", tmp_path_factory.mktemp("retune"))
    return compile_model(model, model.with_name("plan.hjg"), **SMALL, targets=("sm_90",)).path


def number_of(plan: Plan, template: str) -> int:
    return next(i for i, v in enumerate(plan.variants) if plan.templates[v.template].name == template)


def called(plan: Plan) -> set[int]:
    launches = [launch for phase in plan.phases for launch in phase.launches]
    return {
        call.variant for launch in launches for kernel in launch.kernels.values() for call in template_calls(kernel)
    }


@pytest.mark.parametrize("template", ["decode_linear", "decode_attention", "hopper_gated_linear", "prefill_join"])
def test_a_plan_with_other_axes_loads_and_holds_the_code_of_what_it_calls(
    template: str, path: Path, tmp_path: Path
) -> None:
    with plan_format.load(path) as file:
        number = number_of(file.plan, template)
        axes = neighbours(template, file.plan.variants[number].axes)[0]
        changed = with_axes(file.plan, number, axes)
        added = len(changed.variants) - 1
        assert number not in called(changed) and added in called(changed)
        built = build_all([variant_key(changed, added)], lambda _: None)
        made = gathered(file, changed, {added: built[variant_key(changed, added)]}, {"tuned": "sm_90"})
        constants = {"constants": file.section("constants")}
        plan_format.save(tmp_path / "tuned.hjg", made.plan, sections={**constants, **made.sections})
    with plan_format.load(tmp_path / "tuned.hjg") as file:
        plan = file.plan
        assert called(plan) == set(range(len(plan.variants)))
        (found,) = [variant for variant in plan.variants if variant.axes == axes]
        assert found.built is not None
        assert plan.producer.options["tuned"] == "sm_90"


def test_a_plan_without_changes_is_gathered_as_it_was(path: Path) -> None:
    with plan_format.load(path) as file:
        made = gathered(file, file.plan, {}, {})
        assert made.plan.phases == file.plan.phases and made.plan.variants == file.plan.variants
        assert made.sections == {kind: file.section(kind) for kind in ("cubin", "ptx", "templates")}


def test_what_is_tried_is_legal_other_and_needs_no_more_scratch(path: Path) -> None:
    with plan_format.load(path) as file:
        for variant in file.plan.variants:
            name = file.plan.templates[variant.template].name
            found = neighbours(name, variant.axes)
            assert variant.axes not in found and len({repr(sorted(axes.items())) for axes in found}) == len(found)
            assert all(axes.keys() == variant.axes.keys() for axes in found)
            assert all(axes.get("splits") == variant.axes.get("splits") for axes in found)
            assert all(int(axes["shares"]) <= int(variant.axes["shares"]) for axes in found if "shares" in axes)


def test_a_plan_of_other_templates_cannot_be_tuned(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with plan_format.load(path) as file:
        check_templates(file.plan, path)
        monkeypatch.setattr("hjgc.compiler.retune.template_digest", lambda name: "0" * 64)
        with pytest.raises(PlanError, match=r"\$\.templates\[0\]: expected the text of the template"):
            check_templates(file.plan, path)


@pytest.mark.parametrize("name", ["of_another_version", "../build", "../../../pyproject"])
def test_a_plan_of_a_template_that_is_not_installed_cannot_be_tuned(name: str, path: Path) -> None:
    with plan_format.load(path) as file:
        strange = msgspec.structs.replace(file.plan.templates[0], name=name)
        plan = msgspec.structs.replace(file.plan, templates=(strange,))
    with pytest.raises(PlanError, match=r"\$\.templates\[0\]: expected the text .* found none of that name"):
        check_templates(plan, path)
