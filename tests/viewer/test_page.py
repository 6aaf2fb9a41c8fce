"""Does the page of `hjgc view` show a plan to a person with a real browser?

Set HJGC_PICTURES to a folder to have the pictures of docs/viewing.md made anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hjgc.plan_format import load
from hjgc.plan_format.reasons import ReasonCode
from hjgc.tools.viewing.data import page_data
from hjgc.tools.viewing.page import page
from tests.plans import small_plan
from tests.runtime.gpu_plan import write_gpu_plan
from tests.tools.command_line import CommandLine, write_small_plan
from tests.tools.plans_to_compare import compiled_plan, replace, with_reason, write
from tests.viewer.browser import DOWN, ENTER, ESCAPE, RIGHT, Browser

VIEWS = ("overview", "graph", "why", "memory", "templates")


def written(data: dict[str, Any], folder: Path) -> Path:
    path = folder / "page.html"
    path.write_text(page({"plans": [data], "diff": None, "report": None, "measured": [], "timed": []}, "a plan"))
    return path


def viewed(path: Path, folder: Path) -> Path:
    with load(path) as file:
        return written(page_data(file), folder)


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """The page of a compiled plan whose middle is a function of the caller's."""
    return viewed(compiled_plan(tmp_path, function="steer"), tmp_path)


@pytest.fixture
def layered(tmp_path: Path) -> Path:
    folder = tmp_path / "layered"
    folder.mkdir()
    return viewed(write(small_plan(layers=4), write_small_plan(folder)), folder)


def test_every_view_opens_and_says_what_it_is_about(window: Browser, shown: Path) -> None:
    window.open(shown)
    expected = {
        "overview": "What replays",
        "graph": "Phase",
        "why": "To make it static:",
        "memory": "Arena",
        "templates": "no kernel templates",
    }
    for view in VIEWS:
        window.click(f"[data-view={view}]")
        assert expected[view] in window.text()
        assert window.one(f"[data-view={view}]").get_attribute("aria-selected") == "true"


def test_layers_that_are_alike_are_one_row_that_unfolds(window: Browser, layered: Path) -> None:
    window.open(layered, "view=graph&phase=decode")
    (fold,) = [row for row in window.rows() if "layer x 4" in row]
    assert fold.startswith("▸")
    before = len(window.rows())
    window.click(".row.fold")
    assert len(window.all(".row.layer")) == 4
    window.click(".row.layer", 2)
    launches = [row for row in window.rows() if row.startswith("2.")]
    assert len(launches) == len(window.rows()) - before - 4 > 2
    window.click(".row.fold")
    assert len(window.rows()) == before


def test_a_launch_shows_its_operands_kernels_and_onnx_nodes(window: Browser, shown: Path) -> None:
    window.open(shown, "view=graph&phase=decode&launch=2")
    name = window.text(".detail h2")
    assert window.one(".row[aria-selected=true] .name").text == name
    for words in ("Operands", "Kernels", "ONNX nodes", "the op's reference", "written", "MatMul"):
        assert words in window.text(".detail")


def test_a_dynamic_segment_is_told_by_words_and_shape_and_shows_its_chain(window: Browser, shown: Path) -> None:
    window.open(shown, "view=why")
    assert "the caller's" in window.text() or "caller" in window.text()
    window.click("main button", 0)
    assert "view=graph" in window.place() and "segment=" in window.place()
    assert window.one(".row[aria-selected=true] .name").text.startswith("◇ 1 dynamic")
    assert "HOST_READ" in window.text(".detail") and "host/steer" in window.text(".detail")


def test_search_finds_by_onnx_node_template_and_buffer(window: Browser, shown: Path, tmp_path: Path) -> None:
    window.open(shown)
    window.keys("#search", "q_proj/matmul")
    found = window.rows()
    assert "layers.0.attention_inputs" in found and not any("down_proj" in row for row in found)
    window.keys("#search", ENTER)
    assert "q_proj/MatMul" in window.text(".detail") and "search=q_proj" in window.place()
    window.keys("#search", ESCAPE)
    assert "search" not in window.place()
    window.keys("#search", "there is no such thing")
    assert window.rows() == [] and "Nothing here is called so." in window.text(".detail")
    window.open(viewed(write_gpu_plan(tmp_path), tmp_path), "search=KERNEL")
    assert window.rows()


def test_a_place_can_be_sent_to_somebody(window: Browser, layered: Path) -> None:
    window.open(layered, "view=graph&phase=decode")
    window.click(".row.fold")
    window.click(".row.layer", 1)
    window.click(".row.launch", 3)
    name, place = window.text(".detail h2"), window.place()
    assert "launch=" in place
    window.open(layered, place)
    assert window.text(".detail h2") == name == window.one(".row[aria-selected=true] .name").text


@pytest.mark.parametrize(
    "place", ["view=nowhere", "launch=99999999", "segment=-1", "phase=%3Cb%3E", "plan=7", "launch=x&view=graph", "%"]
)
def test_a_place_that_does_not_exist_is_the_nearest_that_does(window: Browser, shown: Path, place: str) -> None:
    window.open(shown, place)
    assert window.text()


def test_everything_can_be_done_with_the_keyboard(window: Browser, layered: Path) -> None:
    window.open(layered)
    window.run("document.body.focus()")
    window.keys("body", "/")
    assert window.run("return document.activeElement.id") == "search"
    window.click("[data-view=overview]")
    window.keys("[data-view=overview]", RIGHT)
    assert window.run("return document.activeElement.dataset.view") == "graph"
    window.keys(".list", DOWN, DOWN)
    first = window.one(".row[aria-selected=true]").text
    window.keys(".list", "j")
    assert window.one(".row[aria-selected=true]").text != first
    for _ in window.rows():
        if "layer x 4" in window.one(".row[aria-selected=true]").text:
            break
        window.keys(".list", DOWN)
    window.keys(".list", ENTER)
    assert window.all(".row.layer")


def test_markup_in_a_plan_is_text_and_no_script_but_ours_may_run(window: Browser, tmp_path: Path) -> None:
    path = write_small_plan(tmp_path)
    with load(path) as file:
        plan = file.plan
    name = "<script>document.title='run'</script><img src=x onerror=alert(1)>"
    phases = tuple(
        replace(
            phase,
            launches=(replace(phase.launches[0], name=name), *phase.launches[1:]),
            buffers=(replace(phase.buffers[0], name=f"{name}buffer"), *phase.buffers[1:]),
        )
        for phase in plan.phases
    )
    shown = viewed(write(replace(plan, phases=phases), path), tmp_path)
    window.open(shown, "view=graph&phase=decode&launch=0")
    assert window.text(".detail h2") == name
    assert window.run("return [document.images.length, document.scripts.length, document.title]") == [0, 2, "a plan"]
    assert window.run(
        "const made = document.createElement('script'); made.textContent = 'window.foreign = 1';"
        "document.body.append(made); return window.foreign === undefined"
    )
    assert all("Content Security Policy" in message for message in window.said())


def test_names_that_run_from_right_to_left_and_for_pages_stay_where_they_are(window: Browser, tmp_path: Path) -> None:
    with load(compiled_plan(tmp_path)) as file:
        data = page_data(file)
    decode = data["phases"][1]
    decode["nodes"][0] = "\u202eelbisiv" + "x" * 10_000
    decode["launches"][0][0] = "\u202ereversed"
    window.open(written(data, tmp_path), "view=graph&phase=decode&launch=0")
    assert "reversed" in window.text(".detail h2")
    assert window.run("return document.documentElement.scrollWidth <= innerWidth")


LOADED = "return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
"""Milliseconds from asking for the page until its script has run, which is when a person can use it."""
LAST = "[...document.querySelectorAll('.row .name')].at(-1).textContent"
COUNT_INPUT = """
  window.inputs = {wheel: 0, keydown: 0};
  for (const kind of Object.keys(inputs)) addEventListener(kind, () => inputs[kind] += 1, {capture: true});
  window.longest = 0;
  let before = performance.now();
  const frame = (now) => { longest = Math.max(longest, now - before); before = now; requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
"""


def test_of_a_hundred_thousand_launches_only_the_visible_rows_exist(window: Browser, long_page: Path) -> None:
    for view in VIEWS:
        window.open(long_page, f"view={view}&phase=decode")
        assert window.run(LOADED) < 4000
    window.click("[data-view=graph]")
    window.click(".row.fold", 1)
    assert len(window.rows()) < 100 and "▸ 16663" not in window.rows()
    window.run("document.querySelector('.list').scrollTop = 1e9")
    window.until(f"return {LAST} === 'sample'")
    assert len(window.rows()) < 100 and "▸ 16663" in window.rows()
    window.keys("#search", "linear")
    window.run("document.querySelector('.list').scrollTop = 1e9")
    window.until(f"return {LAST} === '16663.o'")
    assert len(window.rows()) < 100
    window.keys("#search", ESCAPE, "16000.d")
    assert window.rows() == ["16000.down"]


def test_scrolling_through_a_hundred_thousand_launches_drops_no_input(window: Browser, long_page: Path) -> None:
    window.open(long_page, "view=graph&phase=decode&search=linear")
    window.run(COUNT_INPUT)
    for _ in range(50):
        window.wheel(".list", 2800)
    window.until("return document.querySelector('.list').scrollTop === 50 * 2800")
    window.until("return document.querySelector('#row-5000') !== null")
    assert window.run("return [inputs.wheel, longest < 500]") == [50, True]
    window.run("document.querySelector('#row-5000').click()")
    window.keys(".list", *(DOWN for _ in range(300)))
    assert window.run("return inputs.keydown") == 300
    assert window.one(".row[aria-selected=true]").get_attribute("id") == "row-5300"
    assert window.text(".detail h2") in window.rows()
    assert "launch=" in window.place()


def test_of_a_dynamic_segment_of_many_launches_the_first_reasons_are_shown(window: Browser, tmp_path: Path) -> None:
    plan = with_reason(small_plan(blocks=1000), ReasonCode.UNBOUNDED_SIZE, "batch")
    shown = viewed(write(plan, write_small_plan(tmp_path)), tmp_path)
    window.open(shown, "view=why")
    assert len(window.all(".cause")) == 101 and "and 2914 more launches" in window.text()
    window.open(shown, "phase=decode&segment=0")
    assert len(window.all(".detail .cause")) == 100 and "and 2914 more launches" in window.text(".detail")
    window.open(shown, "phase=decode&launch=3000")
    assert len(window.all(".detail .cause")) == 1


def test_two_plans_stand_side_by_side_with_the_cause_of_what_differs(
    window: Browser, hjgc: CommandLine, tmp_path: Path
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    a, b = compiled_plan(tmp_path / "a"), compiled_plan(tmp_path / "b", function="steer")
    assert hjgc("view", a, b, "-o", tmp_path / "two.html").code == 0
    window.open(tmp_path / "two.html", "view=compare")
    assert "Causes" in window.text() and "aligned" in window.text()
    window.run(
        "const plan = document.getElementById('plan'); plan.value = '1'; plan.dispatchEvent(new Event('change'))"
    )
    window.click("[data-view=graph]")
    assert "plan=1" in window.place() and any("dynamic" in row for row in window.rows())


def test_a_report_and_a_bench_stand_beside_the_predictions(
    window: Browser, hjgc: CommandLine, plan: Path, tmp_path: Path
) -> None:
    entry = {"kind": "static", "phase": "decode", "schedule": "default", "segment": 0, "key": 1, "state": "PROMOTED"}
    report = {"segments": [entry | {"hits": 7, "plain_runs": 1, "why": ""}]}
    points = {"p50": 3.25}
    with load(plan) as file:
        launches = file.plan.phase("decode").launches
    linear = [number for number, launch in enumerate(launches) if launch.op == "linear"][:2]
    place = {"phase": "decode", "rows": 1, "start": 48}
    timed = {**place, "kind": "q", "op": "linear", "launches": linear, "measured_us": 12.5}
    bench = {
        "launches": [timed],
        "rows": [{"system": "hjgc graph", "length": 10, "ttft_ms": points}],
        "decode": [{"system": "hjgc graph", "context": 16, "token_ms": points}],
    }
    (tmp_path / "r.json").write_text(json.dumps(report))
    (tmp_path / "b.json").write_text(json.dumps(bench))
    ran = hjgc("view", plan, "-o", tmp_path / "p.html", "--report", tmp_path / "r.json", "--bench", tmp_path / "b.json")
    assert ran.code == 0
    window.open(tmp_path / "p.html", "view=measured")
    assert "PROMOTED" in window.text() and window.text().count("3.250 ms") == 2
    assert "Launches of decode, 1 rows after 48" in window.text() and "12.5 µs" in window.text()
    window.open(tmp_path / "p.html", f"view=graph&phase=decode&launch={linear[1]}")
    assert "measured\n12.5 µs, as all q" in window.text()


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_small_plan(tmp_path)


def test_memory_names_what_lies_under_the_pointer_and_what_is_chosen(window: Browser, layered: Path) -> None:
    window.open(layered, "view=memory&phase=decode")
    with load(layered.parent / "plan.hjg") as file:
        names = [buffer.name for buffer in file.plan.phase("decode").buffers]
    window.all(".list")[0].send_keys(DOWN)
    assert window.text("section .note").startswith(f"{names[0]}: ")
    window.run(
        "const map = document.querySelector('canvas'); const box = map.getBoundingClientRect();"
        "map.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + 1, clientY: box.top + 1}))"
    )
    said = window.text("section .note")
    assert said == "Nothing lies here then." or any(said.startswith(f"{name}: ") for name in names)


def test_a_plan_for_a_known_chip_says_what_is_left_free_on_it(window: Browser, tmp_path: Path) -> None:
    window.open(viewed(write_gpu_plan(tmp_path), tmp_path))
    assert "free on the H200 140 GiB" in window.text() and "times predicted for the H200" in window.text()


def test_all_states_are_there_however_many(window: Browser, tmp_path: Path) -> None:
    with load(compiled_plan(tmp_path)) as file:
        data = page_data(file)
    data["states"] = [[f"state {i}", *data["states"][0][1:]] for i in range(1000)]
    window.open(written(data, tmp_path), "view=memory")
    window.run("[...document.querySelectorAll('.list')].at(-1).scrollTop = 1e9")
    window.until(
        "return [...document.querySelectorAll('.row .name')].some((n) => n.textContent.startsWith('state 999:'))"
    )


def test_a_dynamic_launch_shows_its_own_chain_and_no_other(window: Browser, tmp_path: Path) -> None:
    with load(compiled_plan(tmp_path, function="steer")) as file:
        data = page_data(file)
    entry = next(e for e in data["dynamic"] if e["phase"] == "decode" and e["schedule"] == "default")
    other = json.loads(json.dumps(entry["causes"][0]))
    other["launch"] -= 1
    other["chain"][-1]["name"] = "somebody else"
    number = entry["causes"][0]["launch"]
    entry["causes"].insert(0, other)
    window.open(written(data, tmp_path), f"view=graph&phase=decode&launch={number}")
    assert "function 'steer'" in window.text(".detail") and "somebody else" not in window.text(".detail")


def test_templates_show_their_text_and_variants(window: Browser, tmp_path: Path) -> None:
    window.open(viewed(write_gpu_plan(tmp_path), tmp_path), "view=templates")
    window.click(".template summary", 0)
    window.until("return document.querySelector('.template table') !== null")
    assert "sm_90" in window.text(".template")


@pytest.mark.parametrize("view", VIEWS)
def test_a_telephone_shows_it_without_scrolling_sideways(window: Browser, shown: Path, view: str) -> None:
    window.size(390, 800)
    window.open(shown, f"view={view}")
    assert window.run("return document.documentElement.scrollWidth <= innerWidth")


def test_light_and_dark(window: Browser, shown: Path) -> None:
    window.open(shown)
    back = "return getComputedStyle(document.body).backgroundColor"
    before = window.run(back)
    window.click("#theme")
    after = window.run(back)
    window.click("#theme")
    assert before != after and window.run(back) == before


def test_pictures(window: Browser, shown: Path, layered: Path, tmp_path: Path) -> None:
    folder = Path(os.environ.get("HJGC_PICTURES") or tmp_path)
    for name, path, place in (
        ("overview", shown, ""),
        ("graph", layered, "view=graph&phase=decode&launch=5"),
        ("why", shown, "view=why"),
    ):
        window.open(path, place)
        window.picture(folder / f"view-{name}.png")
        assert (folder / f"view-{name}.png").stat().st_size > 10_000
