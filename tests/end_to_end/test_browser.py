"""The served pages in a real browser: what they show, how they are used, what they never do."""

from __future__ import annotations

import csv
import json
import re
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.browser import barriers, serve, watch
from tests.many_runs import BROKEN, HOSTILE, HOSTILE_TEXT, add_odd_runs, fill_store

pytestmark = pytest.mark.slow

NUM_RUNS = 50
# A page is there within a second; these machines may be busy with other tests.
PATIENCE_MS = 30_000
SCHEMES = ("light", "dark")
# The browser's own word on an answer whose status is an error.
REFUSED = r"Failed to load resource: the server responded with a status of "
IS_WIDER = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store with 50 runs and one that cannot be read, and names, launched last first."""
    url, now = tmp_path_factory.mktemp("filled").as_uri(), datetime.now(timezone.utc)
    names = fill_store(url, now, NUM_RUNS - 1)
    add_odd_runs(url, now)
    return url, [HOSTILE, *names]


@pytest.fixture(scope="module")
def dashboard(filled):
    with serve(filled[0]) as running:
        yield running


def wait_for(page, selector):
    """Return when it is there and the page has its styles: until then it may be any wide."""
    page.wait_for_selector(selector, timeout=PATIENCE_MS)
    page.wait_for_load_state("load", timeout=PATIENCE_MS)


def open_list(page, dashboard):
    page.goto(f"{dashboard.url}/")
    wait_for(page, "table.runs")


def open_run(page, dashboard, name):
    open_list(page, dashboard)
    page.get_by_role("link", name=name, exact=True).click()
    page.wait_for_selector(f"h1:text-is('{name}')", timeout=PATIENCE_MS)
    wait_for(page, "#provenance")


def open_log(page, dashboard):
    open_run(page, dashboard, HOSTILE)
    page.get_by_role("link", name="attempt 1", exact=True).click()
    wait_for(page, "pre")


def open_comparison(page, dashboard):
    open_list(page, dashboard)
    for name in ("run-00", HOSTILE):
        page.get_by_role("checkbox", name=f"Compare {name}", exact=True).check()
    page.get_by_role("button", name="Compare the ticked runs").click()
    wait_for(page, "h1:text-is('Runs side by side')")


def link_names(page):
    return page.locator("table.runs tbody th a").all_inner_texts()


def test_the_list_has_all_runs_launched_last_first_and_a_link_opens_one(browser, dashboard, filled):
    with watch(browser) as page:
        open_list(page, dashboard)
        assert link_names(page) == filled[1]
        assert len(filled[1]) == NUM_RUNS
        unread = page.get_by_role("region", name="Table of runs that cannot be read")
        assert BROKEN in unread.inner_text()
        assert "is damaged" in unread.inner_text()
        page.get_by_role("link", name="run-07", exact=True).click()
        page.wait_for_selector("h1:text-is('run-07')", timeout=PATIENCE_MS)
        assert re.fullmatch(r".*/runs/run-07-[0-9a-f]{12}", page.url)
        page.go_back()
        page.wait_for_selector("table.runs", timeout=PATIENCE_MS)


def test_text_of_a_run_is_shown_as_it_is_and_does_nothing(browser, dashboard):
    with watch(browser) as page:
        open_run(page, dashboard, HOSTILE)
        assert "<script>alert('1')</script>" in page.inner_text("#decisions + .scroll")
        assert page.evaluate("document.images.length") == 0
        open_log(page, dashboard)
        assert HOSTILE_TEXT in page.locator("pre").text_content()
        sources = page.evaluate("Array.from(document.scripts, (one) => one.getAttribute('src'))")
        assert sources == ["/static/htmx.min.js", "/static/live.js"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_have_no_barrier(browser, dashboard, scheme):
    with watch(browser, expected=[REFUSED + "404"], color_scheme=scheme) as page:
        open_list(page, dashboard)
        assert barriers(page) == []
        for name in ("run-00", HOSTILE):
            open_run(page, dashboard, name)
            page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            assert barriers(page) == []
        for open_other in (open_log, open_comparison):
            open_other(page, dashboard)
            assert barriers(page) == []
        page.goto(f"{dashboard.url}/nowhere")
        assert page.inner_text("h1") == "Not Found."
        assert barriers(page) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_that_wait_or_have_nothing_to_show_say_so_without_barrier(
    browser, filled, tmp_path, scheme
):
    (tmp_path / "none").mkdir()
    with (
        serve(filled[0]) as fresh,
        serve((tmp_path / "none").as_uri()) as empty,
        watch(browser, color_scheme=scheme) as page,
    ):
        # The page's own request is held, so that it goes on waiting.
        held = []
        page.route(lambda url: url == f"{fresh.url}/", lambda route: hold(route, held))
        page.goto(f"{fresh.url}/")
        page.wait_for_selector("text=Reading the runs")
        assert barriers(page) == []
        assert len(held) == 1
        for route in held:
            route.continue_()
        page.wait_for_selector("table.runs", timeout=PATIENCE_MS)
        page.goto(f"{empty.url}/")
        page.wait_for_selector("text=No runs yet", timeout=PATIENCE_MS)
        assert "orchestrate launch examples/quickstart.yaml" in page.inner_text("main")
        assert barriers(page) == []


def hold(route, held):
    if "hx-request" in route.request.headers:
        held.append(route)
    else:
        route.continue_()


def test_colours_follow_the_system(browser, dashboard):
    lightness = {}
    for scheme in SCHEMES:
        with watch(browser, color_scheme=scheme) as page:
            open_list(page, dashboard)
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            lightness[scheme] = sum(map(int, re.findall(r"\d+", colour)[:3]))
    assert lightness["dark"] < 150 < 600 < lightness["light"]


@pytest.mark.parametrize(
    "screen",
    [
        {"phone": True},
        # 200 % zoom of a small laptop's window.
        {"viewport": {"width": 640, "height": 400}, "device_scale_factor": 2},
    ],
    ids=["phone", "zoomed"],
)
def test_no_page_is_wider_than_a_small_screen_or_shuts_out_there(browser, dashboard, screen):
    with watch(browser, expected=[REFUSED + "404"], reduced_motion="reduce", **screen) as page:
        open_list(page, dashboard)
        assert not page.evaluate(IS_WIDER)
        for name in ("run-00", HOSTILE):
            open_run(page, dashboard, name)
            page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            assert not page.evaluate(IS_WIDER), name
            assert barriers(page) == []
            assert page.evaluate("document.getAnimations().length") == 0
        for open_other in (open_log, open_comparison):
            open_other(page, dashboard)
            assert not page.evaluate(IS_WIDER)
            assert barriers(page) == []
        page.goto(f"{dashboard.url}/nowhere")
        assert not page.evaluate(IS_WIDER)


CONTROLS = "a[href], summary, button, input, [tabindex]"
FOCUSED = """(() => {
  const one = document.activeElement;
  if (one === document.body) return null;
  const style = getComputedStyle(one);
  return {
    number: Array.from(document.querySelectorAll(CONTROLS)).indexOf(one),
    tag: one.tagName, text: one.textContent.trim(), is_marked: style.outlineStyle !== "none",
  };
})()""".replace("CONTROLS", repr(CONTROLS))


def tab_through(page):
    """Return what the Tab key reaches, in its order."""
    reached = []
    while len(reached) < 1000:
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused is None or (reached and focused["number"] == reached[0]["number"]):
            break
        reached.append(focused)
    return reached


def tab_to(page, tag):
    page.keyboard.press("Tab")
    while (page.evaluate(FOCUSED) or {}).get("tag") != tag:
        page.keyboard.press("Tab")


def test_all_can_be_used_by_keyboard_alone(browser, dashboard, filled):
    count = f"document.querySelectorAll({CONTROLS!r}).length"
    in_details = "document.querySelectorAll('details :is(a[href], [tabindex])').length"
    with watch(browser) as page:
        open_list(page, dashboard)
        reached = tab_through(page)
        assert [one["number"] for one in reached] == list(range(page.evaluate(count)))
        assert all(one["is_marked"] for one in reached)
        page.reload()
        page.wait_for_selector("table.runs", timeout=PATIENCE_MS)
        tab_to(page, "A")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"h1:text-is('{filled[1][0]}')", timeout=PATIENCE_MS)
        page.wait_for_selector("#provenance", timeout=PATIENCE_MS)
        reached = tab_through(page)
        numbers = [one["number"] for one in reached]
        # What is folded away is not in the way.
        assert numbers == sorted(numbers)
        assert len(numbers) == page.evaluate(count) - page.evaluate(in_details)
        assert all(one["is_marked"] for one in reached)
        tab_to(page, "SUMMARY")
        page.keyboard.press("Enter")
        assert page.locator("details[open]").count() == 1
        page.keyboard.press("Space")
        assert page.locator("details[open]").count() == 0


def test_each_table_can_be_had_as_csv_and_json(browser, dashboard, tmp_path):
    with watch(browser) as page:
        open_list(page, dashboard)
        assert len(check_csv(page, tmp_path, "/runs.csv")) == NUM_RUNS
        assert len(fetch_json(page, "/runs.json")["runs"]) == NUM_RUNS + 1
        for name in ("run-00", HOSTILE):
            open_run(page, dashboard, name)
            page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            tables = page.locator(".scroll:has(table)").count()
            links = page.locator(".downloads a[href*='/tables/']").evaluate_all(
                "all => all.map((one) => one.getAttribute('href'))"
            )
            assert len(links) == 2 * tables > 16
            for link in links:
                if link.endswith(".csv"):
                    rows = check_csv(page, tmp_path, link)
                    # A page shows some of a long table, a program gets all of it.
                    shown, told = first_cells(page, link), [row[0] for row in rows]
                    assert told == shown or (len(told) > len(shown) and set(shown) <= set(told))
                else:
                    document = fetch_json(page, link)
                    assert len(document["rows"]) >= len(first_cells(page, link))
            for link in page.locator("#provenance ~ p.muted:not(.downloads) a").all():
                assert fetch_json(page, link.get_attribute("href"))["run"] == name


def test_ticked_runs_stand_side_by_side_also_for_programs(browser, dashboard, tmp_path):
    with watch(browser) as page:
        open_comparison(page, dashboard)
        heads = page.locator("thead th").all_inner_texts()
        assert [name for name in heads if name in ("run-00", HOSTILE)] == [HOSTILE, "run-00"]
        links = page.locator(".downloads a").evaluate_all(
            "all => all.map((one) => one.getAttribute('href'))"
        )
        rows = check_csv(page, tmp_path, links[0], "comparison.csv")
        assert len(rows) == len(fetch_json(page, links[1])["rows"]) > 5


def check_csv(page, folder: Path, address: str, name: str | None = None):
    """Return the rows of a CSV file that a click has brought; each is as wide as its header."""
    with page.expect_download(timeout=PATIENCE_MS) as download:
        page.click(f'a[href="{address}"]')
    assert download.value.suggested_filename == (name or address.rpartition("/")[2])
    path = folder / "table.csv"
    download.value.save_as(path)
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert {len(row) for row in rows} == {len(header)}
    return rows


def fetch_json(page, address: str):
    text = page.evaluate("async (address) => (await fetch(address)).text()", address)
    return json.loads(text)


def first_cells(page, address: str):
    """Return the first column of the table that a link stands below."""
    table = page.locator(f'p:has(> a[href="{address}"])').locator(
        "xpath=preceding-sibling::div[contains(@class, 'scroll')][1]"
    )
    return table.locator("tbody th").evaluate_all(
        """all => all.map((one) => {
          const copy = one.cloneNode(true);
          for (const more of copy.querySelectorAll(".description")) more.remove();
          return copy.textContent.trim();
        })"""
    )


def test_with_a_token_the_printed_address_opens_and_does_not_stay(browser, filled, monkeypatch):
    monkeypatch.setenv("ORCHESTRATE_DASHBOARD_TOKEN", "a+b/=")
    with (
        serve(filled[0]) as guarded,
        watch(browser, expected=[REFUSED + "401"]) as page,
    ):
        answer = page.goto(f"{guarded.url}/")
        assert answer.status == 401
        assert "holds the token" in page.inner_text("body")
        page.goto(guarded.printed)
        page.wait_for_selector("table.runs", timeout=PATIENCE_MS)
        assert page.url == f"{guarded.url}/"
        assert page.evaluate("document.cookie") == ""
        page.click("table.runs tbody a >> nth=0")
        page.wait_for_selector("#provenance", timeout=PATIENCE_MS)
        assert "token" not in page.url
        assert "a+b" not in page.content()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_exported_page_needs_nothing_but_itself(browser, filled, workplace, scheme):
    path = workplace.folder / "page.html"
    done = workplace.run("dashboard", HOSTILE, "--store", filled[0], "--export", path)
    assert done.returncode == 0, done.stderr
    asked = []
    with watch(browser, color_scheme=scheme) as page:
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        assert page.inner_text("h1") == HOSTILE
        assert asked == [path.as_uri()]
        assert page.evaluate("document.scripts.length") == 0
        assert HOSTILE_TEXT[:20] in page.inner_text("#decisions + .scroll")
        page.click("summary >> nth=0")
        assert page.locator("details[open]").count() == 1
        assert barriers(page) == []
