"""Does a graph serve only if it computes the bytes of the plain run, and does the check leave no trace?"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import msgspec
import pytest

from hjgc.plan_format.ledger import graph_costs
from hjgc.plan_format.structs import Plan, Schedule, StaticSegment
from hjgc.runtime import LogitsProcessor, MemoryRef, Session, worker
from hjgc.runtime.gate import AHEAD, CACHES
from tests.plans import check, small_plan
from tests.runtime.fake_device import FakeDevice, FakeGraph
from tests.runtime.serving import PATIENCE, Arrivals, answer, captured, entry, others, result, serving, when_built

STATIC = [launch.name for launch in small_plan().phase("decode").launches if launch.name != "caller"]


@pytest.mark.parametrize("launch", STATIC)
def test_a_graph_with_a_wrong_launch_is_quarantined_and_the_launch_named(launch: str) -> None:
    with serving() as (session, device):
        device.corrupt = {launch}
        device.corrupt_when = lambda graph, tokens: graph.phase == "decode"
        expected = answer(session)
        captured(session)
        quarantined = entry(session)
        assert quarantined["state"] == "QUARANTINED"
        assert quarantined["history"][-1] == "BUILT -> QUARANTINED"
        report = quarantined["quarantine"]
        number = next(i for i, entry in enumerate(device.plan.phase("decode").launches) if entry.name == launch)
        assert (report["launch"], report["name"]) == (number, launch)
        assert f"launch {number} {launch!r}" in quarantined["why"]
        assert answer(session) == expected
        assert entry(session)["hits"] == 0
        assert entry(session, "prefill", 4)["state"] == "PROMOTED"
        assert [graph.phase for graph in device.living] == ["prefill"]
        assert quarantined["bytes"] == 0


def test_the_report_names_the_memory_that_differs() -> None:
    with serving() as (session, device):
        device.corrupt = {"1.attention_inputs"}
        answer(session, tokens=1)
        captured(session)
        report = entry(session, "prefill", 4)["quarantine"]
        assert report["memory"] == {"1.query": "1 of 128 bytes, the first at 127"}
        assert (report["op"], report["tokens"], report["start"]) == ("attention_inputs", 4, 0)
        json.dumps(report)


@pytest.mark.parametrize("launch", STATIC)
def test_a_graph_that_leaves_a_launch_out_is_found_out(launch: str) -> None:
    with serving() as (session, device):
        device.hollow = {launch}
        answer(session, tokens=1)
        captured(session)
        assert entry(session, "prefill", 4)["quarantine"]["name"] == launch


def test_a_graph_that_writes_nothing_is_found_out() -> None:
    with serving() as (session, device):
        device.hollow = set(STATIC)
        expected = answer(session)
        captured(session)
        assert entry(session)["quarantine"]["name"] == "embed"
        assert answer(session) == expected


def test_a_graph_that_is_wrong_only_at_its_shortest_length_is_found_out() -> None:
    with serving() as (session, device):
        device.corrupt = {"0.o"}
        device.corrupt_when = lambda graph, tokens: tokens == 5
        answer(session, 8, tokens=1)
        captured(session)
        report = entry(session, "prefill", 8)["quarantine"]
        assert (report["name"], report["tokens"]) == ("0.o", 5)


def test_a_fault_of_one_graph_only_is_quarantined_without_blaming_a_launch() -> None:
    with serving() as (session, device):
        device.corrupt = {"0.o"}
        device.corrupt_when = lambda graph, tokens: graph is device.graphs[0]
        answer(session, tokens=1)
        captured(session)
        report = entry(session, "prefill", 4)["quarantine"]
        assert report["launch"] is None
        assert report["why"].endswith("a second graph of the same launches did not")


def test_a_driver_that_refuses_the_search_leaves_its_words_in_the_report() -> None:
    with serving() as (session, device):
        device.corrupt = {"0.o"}
        device.refuse = lambda graph: "CUDA_ERROR_OUT_OF_MEMORY" if "[7]" in graph else None
        answer(session, tokens=1)
        captured(session)
        report = entry(session, "prefill", 4)["quarantine"]
        assert report["launch"] is None
        assert "the device refused: CUDA_ERROR_OUT_OF_MEMORY" in report["why"]
        assert device.living == []


def test_a_check_that_fails_quarantines_its_graph_and_the_session_goes_on() -> None:
    with serving() as (session, device):
        device.replay_error = RuntimeError("unforeseen")
        expected = answer(session)
        captured(session)
        assert entry(session)["why"] == "its check failed with RuntimeError: unforeseen"
        device.replay_error = None
        assert answer(session) == expected
        assert session.report()["worker"]["state"] == "running"
        assert device.living == []


def test_a_worker_that_crashes_in_a_check_gives_the_device_back() -> None:
    with serving() as (session, device):

        def fail(graph: FakeGraph) -> None:
            raise OSError("a bug of ours")

        release, device.release = device.release, fail  # type: ignore[method-assign]
        device.corrupt = {"head"}
        expected = answer(session)
        assert session.wait_captured() is False
        assert session.report()["worker"]["state"].startswith("crashed: OSError")
        assert answer(session) == expected
        device.release = release  # type: ignore[method-assign]


def leave(ids: object, row: object) -> None:
    """A logits processor that changes nothing."""


@pytest.mark.parametrize("process", [None, leave])
@pytest.mark.parametrize("corrupt", [set[str](), {"1.down"}])
def test_a_check_puts_back_all_memory_but_its_cache_rows(corrupt: set[str], process: LogitsProcessor | None) -> None:
    with serving() as (session, device):
        device.corrupt = corrupt
        device.build_may_finish.clear()
        answer(session, process=process)
        before = device.contents()
        device.build_may_finish.set()
        captured(session)
        assert device.contents() == before
        schedule = "default" if process is None else "logits_processor"
        state = "QUARANTINED" if corrupt else "PROMOTED"
        assert {entry(session, *place, schedule)["state"] for place in (("decode", 1), ("prefill", 4))} == {state}


def test_a_check_is_made_at_two_starts_and_the_longest_and_shortest_length() -> None:
    with serving() as (session, device):
        places: set[tuple[int, int]] = set()
        snapshot = device.snapshot

        def note(refs: list[MemoryRef], start: int, tokens: int) -> dict[MemoryRef, object]:
            places.add((start, tokens))
            return snapshot(refs, start, tokens)  # type: ignore[return-value]

        device.snapshot = note  # type: ignore[method-assign,assignment]
        answer(session, 8, tokens=4)
        captured(session)
        assert places == {(0, 8), (5, 5), (10, 1), (5, 1)}


@pytest.mark.parametrize(("phase", "key", "start"), [("decode", 1, 10), ("prefill", 8, 0)])
def test_a_graph_that_is_right_at_one_place_only_is_found_out(phase: str, key: int, start: int) -> None:
    with serving() as (session, device):
        device.corrupt = {"0.attention"}
        device.corrupt_when = lambda graph, tokens: graph.phase == phase and device._parameter("start") != start
        answer(session, 8, tokens=4)
        captured(session)
        report = entry(session, phase, key)["quarantine"]
        assert (report["name"], report["start"]) == ("0.attention", 5)


def test_a_check_at_the_end_of_the_context_stays_inside_it() -> None:
    with serving(small_plan(context=16)) as (session, _):
        answer(session, 15, tokens=2)
        captured(session)
        assert entry(session)["state"] == "PROMOTED"
        assert entry(session, "prefill", 16)["state"] == "PROMOTED"


def test_what_a_segment_takes_from_earlier_ones_is_not_overwritten_by_the_pattern() -> None:
    with serving() as (session, device):
        filled: list[MemoryRef] = []
        fill = device.fill

        def note(refs: Sequence[MemoryRef], start: int, tokens: int, value: int) -> None:
            filled.extend(refs)
            fill(refs, start, tokens, value)

        device.fill = note  # type: ignore[method-assign]
        answer(session, tokens=1, process=leave)
        captured(session)
        names = {"buffer" if ref.space == "buffer" else device.plan.states[ref.index].name for ref in filled}
        assert names == {"buffer", "0.key_cache", "0.value_cache", "1.key_cache", "1.value_cache", "logits", "sampled"}
        assert entry(session, "prefill", 4, "logits_processor", 2)["state"] == "PROMOTED"


def cut_plan(at: int) -> Plan:
    """The small plan, its decode phase cut in two before the launch `at`."""
    plan = small_plan()
    decode = plan.phase("decode")
    (whole,) = decode.schedules[0].segments
    assert isinstance(whole, StaticSegment)
    parts = (StaticSegment(whole.launches[:at], whole.key), StaticSegment(whole.launches[at:], whole.key))
    cut = msgspec.structs.replace(decode, schedules=(Schedule("default", parts), *decode.schedules[1:]))
    plan = msgspec.structs.replace(plan, phases=(plan.phase("prefill"), cut))
    plan = msgspec.structs.replace(plan, ledger=msgspec.structs.replace(plan.ledger, graph=graph_costs(plan.phases)))
    check(plan)
    return plan


def test_segments_that_hand_buffers_on_are_checked_with_what_the_earlier_one_left() -> None:
    with serving(cut_plan(5)) as (session, device):
        filled: set[int] = set()
        fill = device.fill

        def note(refs: Sequence[MemoryRef], start: int, tokens: int, value: int) -> None:
            if MemoryRef("state", device.kind("logits")) in refs:  # before the second part, or all of prefill
                buffers = [ref for ref in refs if ref.phase == "decode"]
                filled.update(byte for ref in buffers for byte in device.arena_bytes_of(ref))
            fill(refs, start, tokens, value)

        device.fill = note  # type: ignore[method-assign]
        expected = answer(session)
        captured(session)
        assert [entry(session, segment=number)["state"] for number in (0, 1)] == ["PROMOTED", "PROMOTED"]
        buffers = device.plan.phase("decode").buffers
        handed_on = [MemoryRef("buffer", i, "decode") for i, b in enumerate(buffers) if b.first < 5 <= b.last]
        assert filled
        assert all(filled.isdisjoint(device.arena_bytes_of(ref)) for ref in handed_on)
        assert answer(session) == expected


def test_a_wrong_byte_that_only_a_later_segment_reads_is_found_out() -> None:
    with serving(cut_plan(2)) as (session, device):
        device.corrupt = {"embed"}
        device.corrupt_when = lambda graph, tokens: graph.phase == "decode"
        answer(session)
        captured(session)
        assert entry(session, segment=0)["quarantine"]["name"] == "embed"
        assert entry(session, segment=1)["state"] == "PROMOTED"


def test_a_later_segment_is_checked_behind_a_plain_run_of_the_earlier_ones() -> None:
    with serving() as (session, device):
        device.corrupt = {"sample"}
        answer(session, tokens=1, process=leave)
        captured(session)
        assert entry(session, "prefill", 4, "logits_processor", 0)["state"] == "PROMOTED"
        last = entry(session, "prefill", 4, "logits_processor", 2)
        assert last["quarantine"]["name"] == "sample"
        assert not any(line.startswith("host") for line in device.log[device.log.index("build prefill@4[13]") :])


def interrupt(
    session: Session, device: FakeDevice, ask: Callable[[], None], arrivals: Arrivals, *, at: str = "0.o"
) -> None:
    """Let a request come while the worker's check runs the launch `at`, each time it does."""

    def come(name: str) -> None:
        if threading.current_thread().name.startswith("hjgc-capture") and name == at:
            ask()
            arrivals.wait()

    device.before_launch = come


def test_a_request_that_comes_during_a_check_is_served_and_the_check_tried_again() -> None:
    with serving() as (session, device), others() as submit:
        device.build_may_finish.clear()
        expected = answer(session)
        arrivals = Arrivals(session)
        answers: list[object] = []

        def ask() -> None:
            device.before_launch = lambda name: None  # only once
            device.log.append("a request comes")
            answers.append(submit(lambda: answer(session)))

        interrupt(session, device, ask, arrivals)
        device.build_may_finish.set()
        captured(session)
        assert result(answers[0]) == expected  # type: ignore[arg-type]
        assert entry(session, "prefill", 4)["aborted_checks"] == 1
        assert session.report()["worker"]["aborted_checks"] == 1
        # The launch that was running ends; no other launch of the check, only the request's.
        after = [line for line in device.log[device.log.index("a request comes") + 1 :] if not line.startswith("build")]
        assert after[0] == "embed"
        captured(session)
        assert entry(session, "prefill", 4)["state"] == "PROMOTED"
        assert answer(session) == expected


def test_a_request_that_comes_while_a_fault_is_searched_is_served_and_the_search_begun_again() -> None:
    with serving() as (session, device), others() as submit:
        device.corrupt = {"0.o"}
        device.build_may_finish.clear()
        expected = answer(session, tokens=1)
        arrivals = Arrivals(session)
        answers: list[object] = []

        def come(graph: str) -> None:
            if graph == "prefill@4[7]" and not answers:
                answers.append(submit(lambda: answer(session, tokens=1)))
                arrivals.wait()

        device.before_replay = come
        device.build_may_finish.set()
        captured(session)
        assert result(answers[0]) == expected  # type: ignore[arg-type]
        quarantined = entry(session, "prefill", 4)
        assert quarantined["aborted_checks"] == 1
        assert quarantined["quarantine"]["name"] == "0.o"
        assert device.living == []


def test_a_check_interrupted_too_often_is_finished_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PATIENCE", 3)
    with serving() as (session, device), others() as submit:
        device.build_may_finish.clear()
        expected = answer(session, tokens=1)
        arrivals = Arrivals(session)
        answers: list[object] = []
        interrupt(session, device, lambda: answers.append(submit(lambda: answer(session, tokens=1))), arrivals)
        device.build_may_finish.set()
        captured(session)
        device.before_launch = lambda name: None
        promoted = entry(session, "prefill", 4)
        assert (promoted["state"], promoted["aborted_checks"]) == ("PROMOTED", 3)
        assert session.report()["worker"]["insisted_checks"] == 2  # a trial each
        assert all(result(future) == expected for future in answers)  # type: ignore[arg-type]


def test_the_plain_run_of_a_check_stays_close_to_the_device() -> None:
    with serving() as (session, device):
        ahead: list[int | None] = []
        run = device.run

        def note(phase: str, launches: Sequence[int], tokens: int, stop: Any = None, most: int | None = None) -> bool:
            ahead.append(most)
            return run(phase, launches, tokens, stop, most)

        device.run = note  # type: ignore[method-assign]
        answer(session, 4, tokens=1)
        assert ahead == [None]
        captured(session)
        assert set(ahead[1:]) == {AHEAD}


def test_where_somebody_always_waits_a_trial_takes_its_place_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "TURN_AFTER", 0.0)
    with serving() as (session, device), others() as submit:
        arrivals = Arrivals(session)
        with session.request() as request:
            arrivals.wait()
            expected = request.prefill([1, 2, 3], {})
            assert not arrivals.wait().request  # the worker, behind nobody
            second = submit(lambda: answer(session, [1, 2, 3], tokens=1))
            assert arrivals.wait().request
            device.log.clear()
        assert result(second) == [expected]
        # The trial first, whole, though somebody waits: a plain run, then a replay; then the request.
        replay = next(i for i, line in enumerate(device.log) if line.startswith("replay prefill"))
        assert device.log.index("embed") < replay and device.log.count("embed") >= 2
        numbers = session.report()["worker"]
        assert numbers["checks_in_turn"] >= 1 and numbers["insisted_checks"] >= 1 and not numbers["aborted_checks"]


def test_closing_ends_a_trials_wait_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "TURN_AFTER", 0.0)
    with serving() as (session, _):
        arrivals = Arrivals(session)
        with session.request() as request:
            arrivals.wait()
            request.prefill([1, 2, 3], {})
            assert not arrivals.wait().request
            session._turns.close()
        session.close()
        assert session.report()["worker"]["state"] == "closed"


def test_no_check_runs_while_a_request_holds_the_device_between_its_steps() -> None:
    with serving() as (session, device):
        threads: set[str] = set()
        device.before_launch = lambda name: threads.add(threading.current_thread().name)
        built = when_built(session)
        with session.request() as request:
            request.prefill([1, 2, 3], {})
            assert built.wait(PATIENCE)
            request.decode()
            assert threads == {threading.current_thread().name}
        captured(session)
        assert any(name.startswith("hjgc-capture") for name in threads)


def test_graphs_made_for_a_search_are_released() -> None:
    with serving() as (session, device):
        device.corrupt = {"head"}
        answer(session, tokens=1)
        captured(session)
        assert len(device.graphs) > 3
        assert device.living == []
        assert all(isinstance(graph, FakeGraph) and graph.released for graph in device.graphs)


def test_waiting_for_captures_inside_a_request_ends_with_its_timeout() -> None:
    with serving() as (session, device):
        with session.request() as request:
            request.prefill([1, 2], {})
            assert device.build_started.wait(PATIENCE)
            assert session.wait_captured(0.01) is False
        captured(session)


def test_a_request_between_two_trials_of_a_graph_is_served_and_the_trial_that_was_passed_counts() -> None:
    with serving() as (session, device), others() as submit:
        device.build_may_finish.clear()
        expected = answer(session, tokens=1)
        arrivals = Arrivals(session)
        answers: list[object] = []
        places: list[tuple[int, int]] = []
        fill = device.fill

        def note(refs: Sequence[MemoryRef], start: int, tokens: int, value: int) -> None:
            places.append((tokens, start))
            fill(refs, start, tokens, value)

        def come(graph: str) -> None:
            if len(places) == 4 and not answers:  # the replay of the second trial
                answers.append(submit(lambda: answer(session, tokens=1)))
                arrivals.wait()

        device.fill = note  # type: ignore[method-assign]
        device.before_replay = come
        device.build_may_finish.set()
        captured(session)
        assert result(answers[0]) == expected  # type: ignore[arg-type]
        # A plain run and a replay each; the second trial was given up before it compared, the first not tried again.
        assert places == [(4, 0)] * 2 + [(3, 3)] * 4
        assert entry(session, "prefill", 4)["aborted_checks"] == 1


def test_the_check_has_a_thread_of_its_own_only_where_the_device_needs_one() -> None:
    for thread_pools in (True, False):
        with serving() as (session, device):
            device.thread_pools = thread_pools
            threads: set[str] = set()
            device.before_replay = lambda graph, seen=threads: seen.add(threading.current_thread().name)
            answer(session, tokens=1)
            captured(session)
            assert threads == {"hjgc-capture-check_0" if thread_pools else "hjgc-capture"}


def test_a_check_copies_no_cache_and_digests_only_the_new_rows() -> None:
    with serving() as (session, device):
        snapshot, restore, digest = device.snapshot, device.restore, device.digest
        digested: list[tuple[int, int]] = []

        def is_cache(ref: MemoryRef) -> bool:
            return ref.space == "state" and device.plan.states[ref.index].kind in CACHES

        def note(refs: Sequence[MemoryRef], start: int, tokens: int) -> dict[MemoryRef, int]:
            digested.extend((start, tokens) for ref in refs if is_cache(ref))
            return digest(refs, start, tokens)

        def read(refs: Sequence[MemoryRef], start: int, tokens: int) -> dict[MemoryRef, object]:
            assert sys._getframe(1).f_code.co_name == "digest" or not any(map(is_cache, refs))
            return snapshot(refs, start, tokens)  # type: ignore[return-value]

        def put(saved: Mapping[MemoryRef, object], start: int, tokens: int) -> None:
            assert not any(map(is_cache, saved))
            restore(saved, start, tokens)  # type: ignore[arg-type]

        device.digest, device.snapshot, device.restore = note, read, put  # type: ignore[method-assign,assignment]
        answer(session, 8, tokens=4)
        captured(session)
        assert (0, 8) in digested and all(tokens <= 8 for _, tokens in digested)
        assert session.report()["worker"]["checked_on"] == "host"


def test_what_differs_in_one_run_and_not_in_the_next_is_no_good_either() -> None:
    with serving() as (session, device):
        digest, asked = device.digest, count()
        device.digest = lambda *arguments: {ref: next(asked) for ref in digest(*arguments)}  # type: ignore[method-assign]
        answer(session)
        captured(session)
        (why,) = {
            e["why"] for e in session.report()["segments"] if e["kind"] == "static" and e["state"] == "QUARANTINED"
        }
        assert "other bytes in one run, the same in the next" in why
