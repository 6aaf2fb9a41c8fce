"""Is the page of `hjgc view` whole, closed to everything foreign, legible, and true? (tests/viewer asks a browser.)"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from hjgc.plan_format import load
from hjgc.tools.viewing.data import page_data
from hjgc.tools.viewing.page import asset, page
from tests.plans import small_plan
from tests.tools.command_line import CommandLine, write_small_plan
from tests.tools.plans_to_compare import PLAN_KINDS, compiled_plan, plan_of_kind, replace, write

THEMES = {"light": r":root \{(.*?)\}", "dark": r':root\[data-theme="dark"\] \{(.*?)\}'}


def shown(path: Path) -> dict[str, Any]:
    """What the page of a plan holds, read back from it."""
    with load(path) as file:
        return embedded(page({"plans": [page_data(file)]}, "a plan"))["plans"][0]


def embedded(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found and "<" not in found[1]
    return json.loads(found[1])


def test_the_command_writes_one_page_of_all_it_needs(hjgc: CommandLine, plan: Path, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    ran = hjgc("view", plan, "-o", output, "--json")
    assert (ran.code, ran.err) == (0, "")
    text = output.read_text()
    assert json.loads(ran.out) == {"page": str(output), "bytes": len(text.encode()), "plans": 1}
    assert asset("view.js") in text and asset("view.css") in text
    found = embedded(text)
    assert (found["diff"], found["report"], found["measured"], found["timed"]) == (None, None, [], [])
    assert hjgc("view", plan, "-o", output).out.startswith(f"{output}: ")
    assert output.read_text() == text


def test_without_a_name_the_page_has_the_plans(
    hjgc: CommandLine, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hjgc("view", plan).out.startswith("plan.html: ")
    assert (tmp_path / "plan.html").is_file()


def test_the_page_asks_for_nothing_and_allows_no_other_script_or_style(plan: Path) -> None:
    with load(plan) as file:
        text = page({"plans": [page_data(file)]}, "a <plan>")
    assert "<title>a &lt;plan&gt;</title>" in text
    for part in (asset("view.js"), asset("view.css")):
        assert not re.search(r"https?:|url\(|@import|import\(|fetch\(|XMLHttpRequest|WebSocket|innerHTML|eval\(", part)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    for kind, name in (("script", "view.js"), ("style", "view.css")):
        digest = base64.b64encode(hashlib.sha256(asset(name).encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"


@pytest.mark.parametrize("kind", PLAN_KINDS)
def test_every_launch_of_the_plan_is_there_with_what_it_points_to(kind: str, tmp_path: Path) -> None:
    path = plan_of_kind(kind, tmp_path)
    data = shown(path)
    with load(path) as file:
        plan = file.plan
    for phase, found in zip(plan.phases, data["phases"], strict=True):
        assert [launch[:2] for launch in found["launches"]] == [[launch.name, launch.op] for launch in phase.launches]
        for launch in found["launches"]:
            assert found["kernels"][launch[3]]
            assert all(found["nodes"][node] for node in launch[8])
            for _, access, space, index in launch[2]:
                assert access in (0, 1, 2)
                name = data["spaces"][space]
                sizes = {"buffer": len(found["buffers"]), "parameters": 1}
                assert index < sizes.get(name, len(data.get(f"{name}s", ())))
        for schedule, drawn in zip(phase.schedules, found["schedules"], strict=True):
            for segment, entry in zip(schedule.segments, drawn["segments"], strict=True):
                numbers = [n for first, last in entry["launches"] for n in range(first, last + 1)]
                assert numbers == list(segment.launches) and entry["count"] == len(numbers)
    assert bool(data["missing"]) == (kind != "compiled")


def test_layers_that_are_alike_are_folded_and_others_are_not(tmp_path: Path) -> None:
    plan = small_plan(layers=4)
    path = write(plan, write_small_plan(tmp_path))
    (fold,) = shown(path)["phases"][1]["folds"]
    names = [launch.name for launch in plan.phase("decode").launches]
    assert names[fold[0]].startswith("0.") and names[fold[0] + fold[1]].startswith("1.") and fold[2] == 4
    decode = plan.phase("decode")
    renamed = replace(decode.launches[fold[0] + fold[1]], name="elsewhere")
    launches = (*decode.launches[: fold[0] + fold[1]], renamed, *decode.launches[fold[0] + fold[1] + 1 :])
    write(replace(plan, phases=(plan.phases[0], replace(decode, launches=launches))), path)
    (changed,) = shown(path)["phases"][1]["folds"]
    assert changed[2] == 2


def test_an_attribute_that_json_does_not_know_is_spelt(tmp_path: Path) -> None:
    path = compiled_plan(tmp_path)
    with load(path) as file:
        data = page_data(file)
    assert json.dumps(data, allow_nan=False)
    from hjgc.tools.viewing.data import _number

    assert [_number(value) for value in (math.inf, -math.inf, 1.5, True)] == ["inf", "-inf", 1.5, True]


TIMED = {
    "phase": "decode",
    "rows": 1,
    "start": 48,
    "kind": "it",
    "op": "embedding",
    "launches": [0],
    "measured_us": 4.5,
}


@pytest.mark.parametrize(
    ("option", "content", "problem"),
    [
        ("--report", None, "expected a file to read"),
        ("--report", "{", "expected JSON"),
        ("--report", "[]", "expected a JSON object with the key 'segments'"),
        ("--bench", "{}", "expected a JSON object with the key 'rows'"),
        ("--bench", '{"rows": [{}]}', "expected the result of `hjgc bench`"),
        (
            "--bench",
            '{"rows": [{"system": "hjgc", "length": 1, "ttft_ms": {"p50": NaN}}]}',
            "expected the result of `hjgc bench`",
        ),
        ("--bench", '{"schema": "hjgc-bench-calls-1", "rows": []}', "found calls of a function; leave --bench out"),
        ("--report", '{"segments": [], "model": "another"}', "expected a report of small, found one of another"),
        ("--report", '{"segments": [{}]}', "expected what `session.report()` gives"),
        ("--bench", '{"rows": [], "launches": [{}]}', "expected launches of this plan"),
        ("--bench", '{"rows": [], "launches": 3}', "expected launches of this plan"),
        *(
            ("--bench", json.dumps({"rows": [], "launches": [TIMED | wrong]}), "expected launches of this plan")
            for wrong in (
                {"phase": "other"},
                {"launches": [999]},
                {"launches": [-1]},
                {"launches": []},
                {"launches": ["0"]},
                {"op": "join"},
                {"measured_us": math.inf},
                {"measured_us": 0},
                {"rows": "many"},
            )
        ),
    ],
)
def test_what_is_no_report_or_bench_is_told_in_one_line(
    option: str, content: str | None, problem: str, hjgc: CommandLine, plan: Path, tmp_path: Path
) -> None:
    given, output = tmp_path / "given.json", tmp_path / "page.html"
    if content is not None:
        given.write_text(content)
    ran = hjgc("view", plan, "-o", output, option, given)
    assert ran.code == 2 and problem in ran.err and len(ran.err.splitlines()) == 1, ran.err
    assert str(given) in ran.err and not output.exists()


def luminance(color: str) -> float:
    """WCAG 2.2's relative luminance of #rrggbb."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", THEMES)
def test_text_stands_out_from_what_it_is_on(theme: str) -> None:
    """WCAG AA: 4.5 to 1."""
    found = re.search(THEMES[theme], asset("view.css"), re.DOTALL)
    assert found
    colors = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", found[1]))
    for ink in ("ink", "soft", "static", "dynamic"):
        for back in ("back", "panel", "chosen"):
            low, high = sorted((luminance(colors[ink]), luminance(colors[back])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{ink} on {back}"
    low, high = sorted((luminance(colors["accent"]), luminance(colors["back"])))
    assert (high + 0.05) / (low + 0.05) >= 4.5, "a chosen tab"


def test_dark_is_the_same_whether_chosen_or_asked_for_by_the_system() -> None:
    style = asset("view.css")
    chosen = re.search(r':root\[data-theme="dark"\] \{(.*?)\}', style, re.DOTALL)
    asked = re.search(r':root:not\(\[data-theme="light"\]\) \{(.*?)\}', style, re.DOTALL)
    assert chosen and asked
    colors = [re.findall(r"--[a-z]+: #[0-9a-f]{6}", part[1]) for part in (chosen, asked)]
    assert colors[0] == colors[1] != []
