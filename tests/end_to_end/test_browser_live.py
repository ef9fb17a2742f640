"""Pages watched while a run trains, while the server is away, while a run is unreadable."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from playwright.sync_api import expect

from checkpoints.layout import RUN_KEY
from tests.browser import barriers, serve, watch
from tests.end_to_end.conftest import Workplace
from tests.many_runs import fill_store

pytestmark = pytest.mark.slow

# Pages renew themselves every 5 s, what cannot be read is tried again every 10 s, and all of it
# shares two cores with a run that trains.
PATIENCE_MS = 90_000
# What the browser and htmx say of a server that does not answer.
NO_ANSWER = r"net::ERR_|htmx:(afterRequest|sendError)"
STEP = ".indicator:has(dt:text-is('Step')) .value"


@pytest.fixture
def training(tmp_path):
    """A workplace whose store has 49 runs of before, and one that trains until the test is over."""
    place = Workplace(tmp_path)
    store = place.folder / "store"
    store.mkdir()
    fill_store(store.as_uri(), datetime.now(timezone.utc), 49)
    spec = place.write_spec(
        "live",
        train={"num_steps": 100_000, "global_batch": 2, "micro_batch": 2, "precision": "fp32"},
        checkpoints={"interval": "20 steps"},
        local={"ranks": 1, "time_scale": 60, "preemptions": []},
    )
    launch = place.start("launch", spec, "--yes")
    steps = store / "live" / "steps"
    try:
        place.wait_for(lambda: launch.poll() is not None or any(steps.glob("*")))
        assert launch.poll() is None, launch.communicate()
        yield place
    finally:
        for process in place.processes():
            process.kill()
        launch.communicate()


def test_a_page_that_is_watched_follows_the_run_and_stays_as_it_was(browser, training):
    store = (training.folder / "store").as_uri()
    with serve(store) as dashboard, watch(browser) as page:
        page.goto(f"{dashboard.url}/")
        page.wait_for_selector("table.runs", timeout=PATIENCE_MS)
        assert page.locator("table.runs tbody tr").count() == 50
        row = page.locator("table.runs tbody tr").first
        row.locator("text=RUNNING").wait_for(timeout=PATIENCE_MS)
        wait_until_it_changes(page, "td[data-label='Progress'] strong")
        row.get_by_role("link", name="live", exact=True).click()
        page.wait_for_selector("#loss ~ details", timeout=PATIENCE_MS)

        page.evaluate("isSamePage = true")
        page.click("text=Show the loss as a table")
        page.focus("text=Show replayed steps")
        table = "#loss ~ details[open] .scroll"
        page.evaluate(f"document.querySelector({table!r}).scrollTop = 40")
        page.evaluate("scrollTo(0, 700)")
        before = page.evaluate(state_of(table))
        assert before == [40, 700, "Show replayed steps beside their recorded values", 1]
        for _ in range(2):
            wait_until_it_changes(page, STEP)
        assert page.evaluate(state_of(table)) == before
        assert page.evaluate("isSamePage") is True
        assert barriers(page) == []


def wait_until_it_changes(page, selector):
    """Wait until the number there is another, and see that it has grown."""
    number = page.locator(selector).first
    before = number.inner_text()
    expect(number).not_to_have_text(before, timeout=PATIENCE_MS)
    assert count_in(number.inner_text()) > count_in(before)


def count_in(text):
    return int(text.split()[0].replace(",", ""))


def state_of(table):
    return (
        f"[document.querySelector({table!r}).scrollTop, scrollY, "
        "document.activeElement.textContent, document.querySelectorAll('details[open]').length]"
    )


@pytest.mark.parametrize("kind", ["list", "run"])
def test_while_the_server_is_away_a_page_says_so_and_keeps_what_it_shows(browser, tmp_path, kind):
    fill_store(tmp_path.as_uri(), datetime.now(timezone.utc), 3)
    with serve(tmp_path.as_uri()) as dashboard, watch(browser, expected=[NO_ANSWER]) as page:
        page.goto(f"{dashboard.url}/")
        page.wait_for_selector("table.runs", timeout=PATIENCE_MS)
        if kind == "run":
            page.click("table.runs tbody a >> nth=0")
            page.wait_for_selector("#provenance", timeout=PATIENCE_MS)
        shown = page.inner_text("main")
        dashboard.kill()
        page.wait_for_selector("#silent:not([hidden])", timeout=PATIENCE_MS)
        said = "server does not answer. What is below is as old as it says."
        assert said in page.inner_text("#silent")
        assert page.inner_text("main") == shown
        assert barriers(page) == []
        dashboard.start()
        page.wait_for_selector("#silent", state="hidden", timeout=PATIENCE_MS)
        page.wait_for_selector("table.runs, #provenance", timeout=PATIENCE_MS)


def test_a_run_that_becomes_unreadable_stays_as_it_was_seen_with_the_reason(browser, tmp_path):
    names = fill_store(tmp_path.as_uri(), datetime.now(timezone.utc), 49)
    with serve(tmp_path.as_uri()) as dashboard, watch(browser) as page, watch(browser) as other:
        page.goto(f"{dashboard.url}/")
        page.wait_for_selector("table.runs", timeout=PATIENCE_MS)
        # Nobody reports on it any more: it is looked at every 10 s, an ended one each minute.
        row = page.locator("table.runs tbody tr:has-text('UNKNOWN')").first
        name = row.locator("a").inner_text()
        assert name in names
        other.goto(dashboard.url + row.locator("a").get_attribute("href"))
        other.wait_for_selector("#provenance", timeout=PATIENCE_MS)
        record = tmp_path / name / RUN_KEY
        sound = record.read_bytes()
        record.write_bytes(b"{")
        broken = page.locator("section:has(#broken) tr", has_text=name)
        broken.wait_for(timeout=PATIENCE_MS)
        assert "is damaged" in broken.inner_text()
        assert page.get_by_role("link", name=name, exact=True).count() == 1
        reason = other.locator(".silent", has_text="is damaged")
        reason.wait_for(timeout=PATIENCE_MS)
        assert other.inner_text("h1") == name
        assert other.locator("#provenance").count() == 1
        assert barriers(other) == []
        record.write_bytes(sound)
        broken.wait_for(state="detached", timeout=PATIENCE_MS)
        reason.wait_for(state="detached", timeout=PATIENCE_MS)


def test_a_run_whose_folder_is_away_stays_on_a_page_that_is_watched(browser, tmp_path):
    fill_store(tmp_path.as_uri(), datetime.now(timezone.utc), 49)
    said = r"status of 503|htmx:(afterRequest|responseError)|Response Status Error Code 503"
    with serve(tmp_path.as_uri()) as dashboard, watch(browser, expected=[said]) as page:
        page.goto(f"{dashboard.url}/")
        page.wait_for_selector("table.runs", timeout=PATIENCE_MS)
        name = page.inner_text("table.runs tbody tr:has-text('UNKNOWN') a >> nth=0")
        page.get_by_role("link", name=name, exact=True).click()
        page.wait_for_selector("#provenance", timeout=PATIENCE_MS)
        folder = tmp_path / name
        away = folder.rename(tmp_path.with_name("away"))
        page.wait_for_selector("#silent:not([hidden])", timeout=PATIENCE_MS)
        assert "The dashboard cannot read this just now." in page.inner_text("#silent")
        assert page.inner_text("h1") == name
        assert page.locator("#provenance").count() == 1
        away.rename(folder)
        page.wait_for_selector("#silent", state="hidden", timeout=PATIENCE_MS)
