"""Does the report say what happened, and do the metrics carry the same numbers?"""

from __future__ import annotations

import json

from tests.runtime.serving import DECODE_GRAPH, PREFILL_GRAPH, answer, captured, entry, serving


def test_the_report_is_json_and_lists_every_segment_and_bucket() -> None:
    with serving() as (session, _):
        report = json.loads(json.dumps(session.report()))
        static = [e for e in report["segments"] if e["kind"] == "static"]
        assert len({(e["phase"], e["schedule"], e["segment"], e["key"]) for e in static}) == len(static) == 4 * 4 + 3
        assert (report["model"], report["target"]) == ("small", "cpu")
        assert report["totals"]["cold"] == len(static)


def test_a_dynamic_segment_is_reported_with_its_reasons_and_its_runs() -> None:
    with serving() as (session, _):
        answer(session, tokens=3, process=lambda ids, row: None)
        dynamic = {e["phase"]: e for e in session.report()["segments"] if e["kind"] == "dynamic"}
        assert dynamic["decode"]["runs"] == 2
        assert dynamic["prefill"]["runs"] == 1
        assert "state" not in dynamic["decode"]
        (reason,) = dynamic["decode"]["reasons"]
        assert (reason["code"], reason["launch"], reason["chain"]) == ("HOST_READ", 13, ["caller", "logits"])
        assert reason["sentence"] == "the host reads or writes its operands between two launches"


def test_hits_plain_runs_and_bytes_add_up() -> None:
    with serving() as (session, _):
        answer(session, tokens=3)
        captured(session)
        answer(session, tokens=3)
        totals = session.report()["totals"]
        assert (totals["hits"], totals["plain_runs"], totals["promoted"]) == (3, 3, 2)
        assert totals["bytes"] == PREFILL_GRAPH + DECODE_GRAPH == session.report()["budget"]["used"]
        assert session.report()["requests"]["finished"] == 2
        worker = session.report()["worker"]
        assert worker["builds"] == 2
        assert worker["check_seconds"] > 0


def test_the_metrics_are_the_numbers_of_the_report() -> None:
    with serving() as (session, _):
        answer(session, tokens=3)
        captured(session)
        report, metrics = session.report(), session.metrics()
        assert all(isinstance(value, int | float) for value in metrics.values())
        assert metrics["totals.promoted"] == 2
        assert metrics["budget.used"] == report["budget"]["used"]
        assert metrics["segment.decode.default.0.1.plain_runs"] == entry(session)["plain_runs"]
        assert metrics["segment.prefill.logits_processor.1.runs"] == 0
        assert metrics["requests.finished"] == 1
        assert metrics["worker.alive"] == 1
        session.close()
        assert session.metrics()["worker.alive"] == 0


def test_a_reader_who_changes_a_report_changes_nothing_else() -> None:
    with serving() as (session, _):
        answer(session)
        captured(session)
        session.report()["segments"].clear()
        entry(session)["history"].clear()
        assert entry(session)["history"]


def test_the_report_says_what_memory_is_held_and_the_metrics_too() -> None:
    with serving() as (session, device):
        answer(session, tokens=3)
        captured(session)
        memory = session.report()["memory"]
        assert memory == device.memory()
        assert memory["graphs"] == PREFILL_GRAPH + DECODE_GRAPH
        assert session.metrics()["memory.graphs"] == memory["graphs"]
        assert session.metrics()["launch_ahead.steps"] == session.report()["launch_ahead"]["steps"] == 1
