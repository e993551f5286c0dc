"""The report's pages, driven in a real browser as a reader would."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from accel_search import accelerators
from accel_search.accelerators.base import ALONE, Accelerator, Effect, Parameter
from accel_search.report.html.page import search_page
from accel_search.storage.keys import Configuration
from accel_search.storage.run_reader import read_run
from accel_search.sweep.page import read_bounds, sweep_page
from tests.support.pages import EVIL, StepTimed, add_failure, make_run_dir, many_trials

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.skipif(
        not CHROMIUM.exists(),
        reason="no /usr/bin/chromium; scripts/install_test_programs.sh installs it",
    ),
    pytest.mark.xdist_group("browser"),  # One browser for all of them.
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox needs rights that root in a container lacks.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser):
    """Open a page; no error, and nothing fetched from elsewhere, may have been seen at the end."""
    contexts, seen = [], []

    def open_(path, width=1200, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)  # A busy machine is no defect.
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda each: None if each.url.startswith(("file:", "data:"))
                else seen.append(each.url))  # fmt: skip
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert seen == []


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return the page of a search of 16 trials, one failed, with pictures."""
    folder = make_run_dir(tmp_path_factory.mktemp("run"))
    add_failure(folder, "the pipeline said no")
    path = folder / "report.html"
    path.write_text(search_page(read_run(folder)))
    return path


def column(page, number):
    return page.locator(f"#table tbody tr > :nth-child({number})").all_inner_texts()


def test_the_table_is_sorted_by_its_heads(open_page, report):
    page = open_page(report)
    speeds = [text.split()[0] for text in column(page, 2)]
    assert speeds[-1] == "–"  # The failed one, last whichever way it is sorted.
    assert speeds[:-1] == sorted(speeds[:-1], key=float, reverse=True)
    head = page.locator("#table th[data-key=s]")
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    speeds = [text.split()[0] for text in column(page, 2)]
    assert speeds[-1] == "–" and speeds[:-1] == sorted(speeds[:-1], key=float)
    page.get_by_role("button", name="Loss, %").click()
    assert head.get_attribute("aria-sort") is None
    losses = [float(text.split()[0]) for text in column(page, 3)[:-1]]
    assert losses == sorted(losses)


def test_the_table_is_filtered_and_the_chart_with_it(open_page, report):
    page = open_page(report)
    page.get_by_label("Find").fill("cache_interval=3 branch_id = 1")
    assert column(page, 1) == ["deepcache(3,\xa01)"]
    assert page.locator("#chart g.dim").count() == 14  # Of 15 measured ones.
    assert page.locator("#count").inner_text() == "1 of 1, 16 in all"
    page.get_by_label("Find").fill("")
    page.get_by_label("Verdict").select_option("failed")
    assert page.locator("#table tbody tr").count() == 1
    page.get_by_label("Verdict").select_option("")
    page.get_by_label("front only").check()
    front = page.locator("#table tbody tr").count()
    assert 1 < front < 15
    assert front == page.locator("#speed details tbody tr").count() - 2  # Two rivals.


def test_a_point_is_told_by_pointing_choosing_and_keys(open_page, report):
    page = open_page(report)
    winner = page.locator("#chart g.k-win")
    winner.scroll_into_view_if_needed()
    box = winner.locator("path").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    tip = page.locator(".tip")
    assert "deepcache(4, 3)" in tip.inner_text() and "speedup 1.9" in tip.inner_text()
    page.mouse.click(*middle)
    detail = page.locator("#detail")
    assert "cache_interval = 4, cache_branch_id = 3" in detail.inner_text()
    assert "the winner" in detail.inner_text()
    assert page.locator("#table tr.chosen th").inner_text().startswith("deepcache(4,\xa03)")
    page.locator("#chart").focus()
    page.keyboard.press("Home")
    first = detail.inner_text()
    page.keyboard.press("ArrowRight")
    assert detail.inner_text() != first
    failed = page.locator("#table tr", has_text="failed").get_by_role("button")
    failed.click()
    assert "the pipeline said no" in detail.inner_text()


def test_pictures_are_enlarged_by_click_and_gone_through_by_keys(open_page, report):
    page = open_page(report)
    page.get_by_role("button", name="Enlarge: Baseline").first.click()
    light = page.get_by_role("dialog")
    assert light.is_visible()
    title = page.locator("#light-title")
    assert title.inner_text().startswith("Baseline")
    page.keyboard.press("ArrowRight")
    assert title.inner_text().startswith("Winner (deepcache(4,")
    page.keyboard.press("d")
    assert page.locator("#light-stage.differ").count() == 1
    blend = page.locator("#light-stage .over").evaluate("e => getComputedStyle(e).mixBlendMode")
    assert blend == "difference"
    page.keyboard.press("Escape")
    light.wait_for(state="hidden")
    # A dialog tells that it was closed a moment later. By a selector: the page lets no text be
    # evaluated, as waiting for a function does.
    page.locator(":focus[aria-label*='Winner']").wait_for()
    assert all(page.locator("img.over").evaluate_all("all => all.slice(0, 4).map(e => e.alt)"))


def test_the_snippet_is_copied_and_themes_and_cells_switch(open_page, report):
    page = open_page(report, scheme="dark")
    page.get_by_role("button", name="Copy").first.click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("from accel_search import accelerate\naccelerate(pipe, {")
    compile(copied, "snippet", "exec")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate(paper) != dark
    cell = page.locator("table.heat td.s6").first
    speed = cell.inner_text()
    page.get_by_label("Smallest loss of score").check()
    assert cell.inner_text() != speed


@pytest.fixture(scope="module")
def step_timed(tmp_path_factory):
    """Return the page of a search whose UNet calls were timed one by one."""
    folder = make_run_dir(tmp_path_factory.mktemp("steps"), evaluator=StepTimed(), pictures=False)
    path = folder / "report.html"
    path.write_text(search_page(read_run(folder)))
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (375, "light")])
def test_where_the_time_of_the_winners_calls_goes_is_a_table(open_page, step_timed, width, scheme):
    page = open_page(step_timed, width=width, scheme=scheme)
    result = page.locator("#result")
    note = "A pipeline call of 4 images takes 1,080 ms. Milliseconds are medians of 1 pipeline "
    assert note in result.inner_text()
    table = result.get_by_role("region", name="Where a call's time goes").get_by_role("table")
    assert table.get_by_role("columnheader", name="ms each, whole batch").is_visible()
    rows = [line.split("\t") for line in table.locator("tbody").inner_text().splitlines()]
    assert rows == [
        ["plain", "5", "80.00", "37.0 %", "1.00"],
        ["deepcache partial at branch 3", "15", "32.00", "44.4 %", "0.40"],
        ["rest of the call (text encoder, scheduler, decoder)", "–", "200.00", "18.5 %", "–"],
    ]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    if width < 500:  # All of it is seen without scrolling.
        assert table.evaluate("e => e.scrollWidth <= e.parentElement.clientWidth")


def test_without_timed_unet_calls_the_page_has_no_such_heading(open_page, report):
    page = open_page(report)
    assert page.locator("#steps, #h-steps").count() == 0
    assert "pipeline call of" not in page.locator("#result").inner_text()


def test_nothing_overflows_a_phone_and_everything_has_its_name(open_page, report):
    page = open_page(report, width=375)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    unnamed = """() => [...document.querySelectorAll('button, input, select, [role], section')]
      .filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length ||
        document.getElementById(e.getAttribute('aria-labelledby')))).map(e => e.outerHTML)"""
    assert page.evaluate(unnamed) == []
    assert page.locator("img:not([alt])").count() == 0
    for landmark in ("banner", "main", "navigation", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_texts_from_outside_stay_texts(open_page, tmp_path):
    folder = make_run_dir(tmp_path, model=EVIL, prompt=EVIL)
    add_failure(folder, EVIL)
    path = tmp_path / "evil.html"
    path.write_text(search_page(read_run(folder)))
    page = open_page(path)
    page.get_by_label("Verdict").select_option("failed")
    page.locator("#table .link").click()
    assert EVIL in page.locator("#detail").inner_text()
    page.locator(".shot").first.click()
    assert EVIL in page.locator("#light-title").inner_text()
    assert EVIL in page.locator("h1").inner_text()
    assert page.evaluate("window.harmed") is None
    # Even a handler that found its way in would not run.
    assert "unsafe" not in page.locator("meta[http-equiv]").get_attribute("content")


class Evil(Accelerator):
    """A plug-in whose effect has a name that means harm."""

    name = "evil"
    parameters = (Parameter("depth", (1,), 1, None, "how deep"),)
    order = 99

    def signature(self, params, workload, context=ALONE):
        return params["depth"]

    def step_types(self, params, workload, context=ALONE):
        return (frozenset({Effect(EVIL)}),) * workload.unet_calls

    def apply(self, pipe, params, clock):
        raise NotImplementedError


def test_a_step_type_of_a_plug_in_stays_text(open_page, tmp_path, monkeypatch):
    monkeypatch.setitem(accelerators._discovered(), "evil", Evil())
    path = many_trials(tmp_path / "trials.json", 1)
    content = json.loads(path.read_text())
    [trial] = content["trials"]
    trial |= {"candidate": {"evil": {"depth": 1}}, "scores": content["baseline"]["scores"]}
    times = {"call": 0.25, "seconds": [0.01] * 20, "kinds": [1] * 20, "baseline_calls": 20}
    trial["step_times"] = [times]
    path.write_text(json.dumps(content))
    page_path = tmp_path / "evil.html"
    page_path.write_text(search_page(read_run(path)))
    page = open_page(page_path)
    assert page.locator("#steps tbody th").first.inner_text() == f"evil {EVIL}"
    assert page.evaluate("window.harmed") is None


def test_a_sweep_is_sorted_filtered_and_links_to_its_searches(open_page, tmp_path):
    bounds = Path(__file__).parents[3] / "speedup_bounds.json"
    content = json.loads(bounds.read_text())
    content["failed_configs"] = {
        f"{EVIL}_DDIM_20_tome": {"error": "timeout", "message": EVIL, "seconds": 9}
    }
    (tmp_path / "b.json").write_text(json.dumps(content))
    links = {Configuration("SDXL", "DDIM", 20, "deepcache"): "b_files/one.html"}
    path = tmp_path / "b.html"
    path.write_text(sweep_page(read_bounds(tmp_path / "b.json"), links))
    page = open_page(path)
    rows = page.locator("#configurations tbody tr")
    assert rows.count() == 6
    assert "no gain" in rows.filter(has_text="SD2.1").inner_text()
    assert (
        page.get_by_role("link", name="Report of SDXL").get_attribute("href") == links.popitem()[1]
    )
    head = page.locator("#configurations thead th", has_text="tgate")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert "SDXL" in rows.first.inner_text() and "50" in rows.first.inner_text()
    page.get_by_label("Find").fill("sdxl 50")
    assert rows.count() == 1
    page.get_by_label("Find").fill("")
    page.get_by_label("Show").select_option("failed")
    assert rows.count() == 1 and "timeout" in rows.inner_text()
    assert EVIL in page.locator("#failures").inner_text()
    assert page.evaluate("window.harmed") is None


@pytest.mark.slow
def test_two_thousand_trials_are_shown_in_parts(open_page, tmp_path):
    path = tmp_path / "many.html"
    path.write_text(search_page(read_run(many_trials(tmp_path / "many.json", 2000))))
    page = open_page(path)
    assert page.locator("#chart svg g").count() == 2000
    assert re.match("25 of 2,000", page.locator("#count").inner_text())
    page.get_by_role("button", name="Show more").click()
    assert page.locator("#table tbody tr").count() == 225
    page.locator("#find").fill("gate_step = 7 ")
    assert path.stat().st_size < 2_000_000
