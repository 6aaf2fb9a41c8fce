"""How many cases of ONNX's backend suite ran natively, with an island, or failed?"""

from __future__ import annotations

import pytest

from tests.conformance.running import Result

RAN = pytest.StashKey[list[tuple[str, Result]]]()
"""Kind and result of each case."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RAN] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    ran = config.stash.get(RAN, [])
    if ran:
        terminalreporter.section("conformance")
        terminalreporter.line(_line("node cases", [result for kind, result in ran if kind == "node"]))
        terminalreporter.line(_line("model cases", [result for kind, result in ran if kind != "node"]))


def _line(title: str, results: list[Result]) -> str:
    native, island, failed = (results.count(result) for result in Result)
    return f"{title}: {len(results)} ran, {native} passed natively, {island} passed with an island, {failed} failed"
