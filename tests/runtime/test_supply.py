"""Does a session serve with the code that is there, and take in what is built since between two requests?"""

from __future__ import annotations

from pathlib import Path

import pytest

from hjgc.plan_format import InputError, Plan, PlanError, RunError
from hjgc.plan_format.building import BuildAnswer, BuildRequest
from hjgc.plan_format.structs import HostCall, RowRange, RowsCall, TemplateCall, Variant
from hjgc.plan_format.verify import verify
from hjgc.runtime.backend import BackendRefused
from hjgc.runtime.build_child import ChildLost
from hjgc.runtime.code_choice import choose_code
from hjgc.runtime.just_in_time import JustInTime
from hjgc.runtime.opening_cuda import Unusable
from hjgc.runtime.retarget import for_chip
from hjgc.runtime.session import Session
from tests.runtime.gpu_plan import (
    NOTHING,
    FakeChild,
    GpuDriver,
    build_it,
    gpu_plan,
    open_gpu,
    refuse,
    replace,
    write_gpu_plan,
)
from tests.runtime.serving import PATIENCE, Arrivals, answer, captured

SECTIONS = {"constants": 8, "cubin": 16, "ptx": 8}


def built(session: Session) -> None:
    assert session.wait_built(PATIENCE)


def test_a_chip_of_the_plan_runs_its_own_code_and_nothing_is_built(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_90"), FakeChild()
    with open_gpu(write_gpu_plan(tmp_path), driver, child) as session:
        answer(session, 3, tokens=2)
        assert driver.ran == ["launch planned_1", "launch planned_0"]
        assert (child.starts, session.report()["code"]["why"]) == (0, "")
        assert session.report()["code"]["just_in_time"]["state"] == "idle"


def test_an_unknown_chip_is_served_by_portable_code_at_once_and_by_its_own_once_that_is_built(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_100"), FakeChild()
    child.may_answer.clear()
    with open_gpu(write_gpu_plan(tmp_path), driver, child) as session:
        answer(session, 16, tokens=2)
        assert driver.ran == ["launch planned_4"]
        assert session.report()["target"] == "compute_80"
        assert session.metrics()["code.fallback"] == 1
        child.may_answer.set()
        built(session)
        driver.log.clear()
        answer(session, 3, tokens=2)
        assert driver.ran == ["launch built_4_sm_100", "launch built_1_sm_100"]
        code = session.report()["code"]
        assert (code["target"], code["why"]) == ("sm_100", "the plan has no code for sm_100")
        assert code["swaps"] == ["compute_80 gave way to sm_100"]
        assert code["just_in_time"]["reasons"] == {"unknown chip": 2}
        numbers = session.metrics()
        assert (numbers["code.just_in_time.built"], numbers["code.fallback"], numbers["code.swaps"]) == (2, 0, 1)
    assert driver.living == []


def test_code_is_swapped_between_requests_and_never_within_one(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_100"), FakeChild()
    child.may_answer.clear()
    with open_gpu(write_gpu_plan(tmp_path), driver, child) as session:
        with session.request() as request:
            request.prefill([1, 2, 3], {})
            child.may_answer.set()
            assert not session.wait_built(0.05)
            for _ in range(3):
                request.decode()
            assert driver.ran == ["launch planned_4"]
        built(session)
        driver.log.clear()
        answer(session, 3, tokens=1)
        assert driver.ran == ["launch built_4_sm_100"]


def test_graphs_of_code_that_gave_way_are_dropped_and_captured_again(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_100"), FakeChild()
    child.may_answer.clear()
    with open_gpu(write_gpu_plan(tmp_path), driver, child, capture=True) as session:
        answer(session, 3, tokens=3)
        captured(session)
        assert session.report()["totals"]["promoted"] == 2
        child.may_answer.set()
        built(session)
        report = session.report()
        assert (report["totals"]["promoted"], report["worker"]["renewed"], report["budget"]["used"]) == (0, 2, 0)
        assert driver.log.count("drop_executable") == 2
        answer(session, 3, tokens=3)
        captured(session)
        driver.log.clear()
        answer(session, 3, tokens=3)
        assert driver.ran == ["replay built_4_sm_100", "replay built_1_sm_100"]


def test_a_long_prompt_runs_in_chunks_of_what_is_built_until_its_own_kernels_are(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_90"), FakeChild()
    child.may_answer.clear()
    with open_gpu(write_gpu_plan(tmp_path), driver, child) as session:
        answer(session, 15, tokens=1)
        assert child.started.wait(PATIENCE)
        assert [request.axes["rows"] for request in child.asked] == [16]
        chunks = [entry for entry in session.report()["segments"] if entry.get("plain_runs")]
        assert [(e["schedule"], e["key"], e["plain_runs"]) for e in chunks] == [
            ("default", 4, 1),
            ("prompt_only", 4, 3),
        ]
        child.may_answer.set()
        built(session)
        driver.log.clear()
        answer(session, 15, tokens=1)
        assert driver.ran == ["launch built_16_sm_90"]
        code = session.report()["code"]
        assert code["swaps"] == ["prefill of up to 15 rows in one call"]
        assert code["just_in_time"]["reasons"] == {"unplanned rows": 1}
        assert child.closes == 1


def test_no_graph_is_built_of_kernels_that_are_not_there_and_the_refusal_says_so(tmp_path: Path) -> None:
    driver = GpuDriver("sm_90")
    with open_gpu(write_gpu_plan(tmp_path), driver, FakeChild()) as session:
        assert session._backend.build("prefill", (0, 1), 4).bytes > 0
        with pytest.raises(BackendRefused, match="the kernels for 16 rows are not built"):
            session._backend.build("prefill", (0, 1), 16)


def test_a_range_in_between_that_is_not_built_is_cut_at_what_is(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_90"), FakeChild()
    with open_gpu(write_gpu_plan(tmp_path), driver, child) as session:
        answer(session, 16, tokens=1)
        built(session)
        child.answer = refuse("no")
        driver.log.clear()
        answer(session, 7, tokens=1)
        built(session)
        assert driver.ran == ["launch planned_1"]
        assert [request.axes["rows"] for request in child.asked] == [16, 8]


def test_what_is_refused_is_written_down_and_not_asked_for_again(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_90"), FakeChild(refuse("ptxas is out of registers"))
    with open_gpu(write_gpu_plan(tmp_path), driver, child) as session:
        for _ in range(3):
            answer(session, 16, tokens=1)
            built(session)
        assert len(child.asked) == 1
        (failure,) = session.report()["code"]["just_in_time"]["failures"]
        assert failure == {
            "what": "kernel for sm_90",
            "reason": "unplanned rows",
            "why": "template kernel: ptxas is out of registers; mend it",
        }


def test_kernels_that_the_driver_refuses_leave_what_served_before(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_100"), FakeChild()
    child.may_answer.clear()
    with open_gpu(write_gpu_plan(tmp_path), driver, child) as session:
        driver.refuses = {"load_module"}
        child.may_answer.set()
        built(session)
        answer(session, 3, tokens=1)
        assert driver.ran == ["launch planned_4"]
        (failure,) = session.report()["code"]["just_in_time"]["failures"]
        assert "not taken in: PlanError" in failure["why"]


def test_kernels_that_the_driver_refuses_are_not_built_again_for_every_prompt(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_90"), FakeChild()
    with open_gpu(write_gpu_plan(tmp_path), driver, child) as session:
        driver.refuses = {"load_module"}
        for _ in range(3):
            answer(session, 16, tokens=1)
            built(session)
        assert len(child.asked) == 1
        assert session.report()["code"]["just_in_time"]["failed"] == 1


def test_code_that_will_not_do_is_given_back_at_once(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_90"), FakeChild()
    with open_gpu(write_gpu_plan(tmp_path), driver, child) as session:
        driver.widths = (8,)
        answer(session, 16, tokens=1)
        built(session)
        assert driver.living == ["code 000", "code 001"]


def test_rows_that_were_ordered_for_code_that_gave_way_meanwhile_are_not_taken_in(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_100"), FakeChild()
    child.may_answer.clear()
    with open_gpu(write_gpu_plan(tmp_path, change=with_few_portable_rows), driver, child) as session:
        answer(session, 16, tokens=1)
        child.may_answer.set()
        built(session)
        assert {request.target for request in child.asked} == {"sm_100", "compute_80"}
        assert session.report()["code"]["swaps"] == ["compute_80 gave way to sm_100"]
        assert driver.living == ["built_4_sm_100", "built_1_sm_100"]


def with_few_portable_rows(plan: Plan) -> Plan:
    """The plan whose portable code for more than 4 rows of a prompt is not built."""
    variants = (*plan.variants, Variant(0, "compute_80", {"rows": 32}, NOTHING))
    few = RowsCall((RowRange(4, TemplateCall(4, (1, 1, 1), ())), RowRange(16, TemplateCall(5, (1, 1, 1), ()))))
    prefill, decode = plan.phases
    launches = tuple(
        launch
        if isinstance(launch.kernels["compute_80"], HostCall)
        else replace(launch, kernels={**launch.kernels, "compute_80": few})
        for launch in prefill.launches
    )
    return replace(plan, variants=variants, phases=(replace(prefill, launches=launches), decode))


def test_a_session_that_closes_while_code_waits_for_its_turn_counts_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, child = GpuDriver("sm_90"), FakeChild()
    session = open_gpu(write_gpu_plan(tmp_path), driver, child)
    arrivals, close = Arrivals(session), JustInTime.close

    def close_late(builds: JustInTime) -> None:
        assert builds.wait(PATIENCE)  # who waited for a turn was sent away
        close(builds)

    monkeypatch.setattr(JustInTime, "close", close_late)
    with session.request() as request:
        arrivals.wait()
        request.prefill([1] * 16, {})
        arrivals.wait()
        session.close()
    assert session.report()["code"]["just_in_time"]["failures"] == []


def test_a_device_that_answers_nothing_any_more_is_still_reported_and_the_plan_file_closed(tmp_path: Path) -> None:
    driver = GpuDriver("sm_90")
    session = open_gpu(write_gpu_plan(tmp_path), driver, FakeChild())
    answer(session, 3, tokens=2)
    driver.refuses = {"free_bytes", "close"}
    report = session.report()
    assert (report["requests"]["finished"], "free" in report["memory"]) == (1, False)
    with pytest.raises(BackendRefused):
        session.close()
    with pytest.raises(InputError, match="closed file"):
        session._file.section("constants")


def test_without_the_extra_that_builds_portable_code_goes_on_serving_and_says_why(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_100"), FakeChild(refuse("triton is not installed", "extra"))
    with open_gpu(write_gpu_plan(tmp_path), driver, child) as session:
        built(session)
        answer(session, 16, tokens=1)
        builds = session.report()["code"]["just_in_time"]
        assert (builds["state"], builds["why_off"]) == ("off", "template kernel: triton is not installed; mend it")
        assert (len(child.asked), session.report()["target"]) == (1, "compute_80")


def test_the_process_that_builds_ends_with_the_session(tmp_path: Path) -> None:
    child = FakeChild()
    child.may_answer.clear()
    session = open_gpu(write_gpu_plan(tmp_path), GpuDriver("sm_100"), child)
    assert child.started.wait(PATIENCE)
    session.close()
    assert (child.killed, child.closes) == (True, 1)
    assert session.report()["code"]["just_in_time"]["state"] == "closed"


def test_strict_refuses_rows_that_were_not_planned_and_names_the_kernel(tmp_path: Path) -> None:
    child = FakeChild()
    with open_gpu(write_gpu_plan(tmp_path), GpuDriver("sm_90"), child, strict=True) as session:
        answer(session, 4, tokens=2)
        with pytest.raises(
            RunError, match=r"kernel for sm_90 not built ahead of time \(unplanned rows\); .*--prompt 1:9"
        ):
            answer(session, 9)
        answer(session, 4, tokens=2)
    assert child.starts == 0


def test_strict_refuses_a_chip_that_was_not_planned(tmp_path: Path) -> None:
    driver = GpuDriver("sm_100")
    with pytest.raises(RunError, match=r"expected a plan with code for sm_100, .*compile with --target sm_100"):
        open_gpu(write_gpu_plan(tmp_path), driver, FakeChild(), strict=True)
    assert driver.log[-1] == "close"


def test_without_portable_code_all_is_built_before_the_first_request(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_100"), FakeChild()
    told: list[str] = []
    plan = write_gpu_plan(tmp_path, ("sm_90",))
    with open_gpu(plan, driver, child, progress=told.append) as session:
        answer(session, 3, tokens=2)
        assert driver.ran == ["launch built_4_sm_100", "launch built_1_sm_100"]
        assert told == ["build 1 of 2 kernels (unknown chip)", "build 2 of 2 kernels (unknown chip)"]
        assert child.closes == 1


def test_without_portable_code_and_without_the_extra_opening_says_what_to_install(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_100"), FakeChild(refuse("triton is not installed", "extra"))
    with pytest.raises(
        Unusable, match=r"GPU is a sm_100, and the plan has no code for sm_100: .*triton is not installed"
    ):
        open_gpu(write_gpu_plan(tmp_path, ("sm_90",)), driver, child)
    assert driver.log[-1] == "close"


def test_trusting_templates_alone_runs_no_code_of_the_plan(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_90"), FakeChild()
    with open_gpu(write_gpu_plan(tmp_path), driver, child, trust="templates") as session:
        assert driver.living == ["built_1_sm_90", "built_4_sm_90"]
        answer(session, 3, tokens=2)
        assert driver.ran == ["launch built_4_sm_90", "launch built_1_sm_90"]
        assert session.report()["code"]["just_in_time"]["reasons"] == {"rebuild": 2}
        assert {request.digest for request in child.asked} == {"1" * 64}


def test_trusting_templates_on_an_unknown_chip_builds_for_it(tmp_path: Path) -> None:
    driver = GpuDriver("sm_100")
    with open_gpu(write_gpu_plan(tmp_path), driver, FakeChild(), trust="templates") as session:
        answer(session, 3, tokens=1)
        assert driver.ran == ["launch built_4_sm_100"]


def test_a_template_of_another_text_than_the_installed_one_is_not_rebuilt(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_90"), FakeChild(refuse("expected the text with the digest 1, found 2", "template"))
    with pytest.raises(PlanError, match=r"installed with hjgc: template kernel: expected the text with the digest 1"):
        open_gpu(write_gpu_plan(tmp_path), driver, child, trust="templates")
    assert driver.log[-1] == "close"


def test_the_portable_target_may_be_asked_for(tmp_path: Path) -> None:
    driver, child = GpuDriver("sm_90"), FakeChild()
    with open_gpu(write_gpu_plan(tmp_path), driver, child, target="compute_80") as session:
        answer(session, 16, tokens=2)
        assert driver.ran == ["launch planned_4"]
        assert session.report()["code"]["why"] == "compute_80 was asked for on sm_90"
        assert child.starts == 0


def test_another_chip_than_the_one_that_was_named_is_unusable(tmp_path: Path) -> None:
    driver = GpuDriver("sm_100")
    with pytest.raises(Unusable, match="this machine's GPU is sm_100"):
        open_gpu(write_gpu_plan(tmp_path), driver, FakeChild(), target="sm_90")
    assert driver.log[-1] == "close"


def test_a_kernel_with_other_parameters_than_the_plan_calls_is_not_taken(tmp_path: Path) -> None:
    def another(request: BuildRequest) -> BuildAnswer:
        built = build_it(request).built
        assert built is not None
        return BuildAnswer(replace(built, parameters=("pointer", *NOTHING)))

    child = FakeChild(another)
    with open_gpu(write_gpu_plan(tmp_path), GpuDriver("sm_90"), child) as session:
        answer(session, 16, tokens=1)
        built(session)
        (failure,) = session.report()["code"]["just_in_time"]["failures"]
        assert "expected a kernel with the parameters" in failure["why"]


def test_a_process_that_keeps_ending_is_not_started_for_ever(tmp_path: Path) -> None:
    child = FakeChild()

    def end(request: object) -> None:
        raise ChildLost("ended with status 1: no module named triton")

    child.answer = end  # type: ignore[assignment]
    with open_gpu(write_gpu_plan(tmp_path), GpuDriver("sm_90"), child) as session:
        for length in (16, 8, 16, 8):
            answer(session, length, tokens=1)
            built(session)
        builds = session.report()["code"]["just_in_time"]
        assert (child.starts, child.closes, builds["failed"]) == (2, 2, 2)
        assert builds["why_off"] == "ended with status 1: no module named triton"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return gpu_plan(tmp_path)


def test_a_plan_with_one_more_chip_is_legal_and_leaves_out_what_the_chip_cannot_do(plan: Plan, tmp_path: Path) -> None:
    derived, ahead = for_chip(plan, "sm_100")
    verify(derived, SECTIONS, tmp_path)
    assert derived.variants[: len(plan.variants)] == plan.variants
    assert [derived.variants[i].axes["rows"] for i in ahead] == [4, 1]


def test_kernels_that_are_too_large_or_for_one_chip_only_give_way_to_the_portable_ones(plan: Plan) -> None:
    only = replace(plan, templates=(replace(plan.templates[0], only="sm_90"), replace(plan.templates[0], name="other")))
    portable = replace(plan.variants[4], template=1)
    only = replace(only, variants=(*plan.variants[:4], portable))
    derived, ahead = for_chip(only, "sm_100")
    assert [derived.variants[i].axes["rows"] for i in ahead] == [16]

    wide = plan.variants[1]
    assert wide.built is not None
    small = (plan.variants[0], wide, *(replace(plan.variants[i], built=wide.built) for i in (2, 3)), plan.variants[4])
    large = replace(wide, built=replace(wide.built, shared_bytes=150 << 10))
    cases = {
        "small on a small chip": (small, "sm_120", [4, 8, 16, 1]),
        "not built, on a small chip": (plan.variants, "sm_120", [16, 1]),
        "large on a small chip": ((small[0], large, *small[2:]), "sm_120", [16, 1]),
        "large on a large chip": ((small[0], large, *small[2:]), "sm_100", [4, 8, 16, 1]),
    }
    for what, (variants, chip, rows) in cases.items():
        derived, ahead = for_chip(replace(plan, variants=variants), chip)
        assert [derived.variants[i].axes["rows"] for i in ahead] == rows, what


def test_waiting_for_the_predecessor_is_off_on_chips_that_cannot(plan: Plan) -> None:
    early = replace(plan.variants[0], pdl=True, axes={"rows": 1, "pdl": True})
    template = replace(plan.templates[0], axes=("pdl", "rows"))
    others = (replace(v, axes={**v.axes, "pdl": False}) for v in plan.variants[1:])
    waiting = replace(plan, templates=(template,), variants=(early, *others))
    for chip, pdl in (("sm_89", False), ("sm_100", True)):
        derived, ahead = for_chip(waiting, chip)
        found = [derived.variants[i] for i in ahead if derived.variants[i].axes["rows"] == 1]
        assert [(variant.pdl, variant.axes["pdl"]) for variant in found] == [(pdl, pdl)]


def test_the_choice_of_code_says_what_is_unusual_about_it(plan: Plan) -> None:
    choice = choose_code(plan, "sm_100", asked=None, trust="plan", strict=False)
    assert (choice.target, choice.better, choice.now, len(choice.later)) == ("compute_80", "sm_100", (), 2)
    assert choose_code(plan, "sm_90", asked=None, trust="plan", strict=True).words == ""
