"""How soon a browser shows the pages of runs: `python -m benchmarks.first_paint [--events 100000]`.

The list of 50 runs, and the page of one run with so many events, served by the real command. Per
page: the first visit of a server that has just started, the median of later ones, and one at which
the server looks at the run again; each in a browser without anything kept. First paint is the
browser's own first-contentful-paint, the content the page's last table or the list's rows; both in
milliseconds from the start of the navigation. Needs the dev extra, and Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import psutil
from playwright.sync_api import Browser

from benchmarks.ledger import write_run
from benchmarks.machine import describe_machine
from checkpoints.store import open_store
from orchestrator.runs import KnownRun
from tests.browser import open_browser, serve
from tests.many_runs import fill_store

_NUM_RUNS, _NUM_LOADS, _PATIENCE_MS = 50, 5, 120_000
# The server looks again after 10 s at a run that nobody reports on, as these are.
_STALE_S = 11
# The product's promise.
_TARGET_MS = 1000
_FIRST_PAINT = """() => new Promise((tell) => new PerformanceObserver((seen) => {
  for (const one of seen.getEntriesByName("first-contentful-paint")) tell(one.startTime);
}).observe({type: "paint", buffered: true}))"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One visit; milliseconds."""

    first_paint: float
    content: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A page: its first visit, the median of later ones, a new look; the server's memory."""

    page: str
    first: Load
    later: Load
    new_look: Load
    memory_mb: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_paint", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000, help="of the long run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        many, long = (Path(folder) / name for name in ("many", "long"))
        fill_store(many.as_uri(), datetime.now(timezone.utc), _NUM_RUNS)
        write_run(open_store(f"{long.as_uri()}/run"), options.events)
        run = KnownRun(run="run", store_url=long.as_uri())
        pages = (
            (f"list of {_NUM_RUNS} runs", many.as_uri(), "/", "table.runs"),
            (
                f"run of {options.events:,} events",
                long.as_uri(),
                f"/runs/{run.key}",
                "#provenance ~ .scroll",
            ),
        )
        rows = [measure(browser, *page) for page in pages]
    if options.json:
        machine = describe_machine("playwright")
        json.dump({"machine": machine, "rows": [asdict(row) for row in rows]}, sys.stdout, indent=1)
    else:
        for row in rows:
            _print(row)
    return 0


def measure(browser: Browser, name: str, store: str, path: str, content: str) -> Row:
    """Visit a page of a fresh server, then again a few times."""
    with serve(store) as dashboard:
        url = f"{dashboard.url}{path}"
        first = _visit(browser, url, content)
        later = [_visit(browser, url, content) for _ in range(_NUM_LOADS)]
        time.sleep(_STALE_S)
        new_look = _visit(browser, url, content)
        memory = psutil.Process(dashboard.process.pid).memory_info().rss / 1e6
    median = Load(
        first_paint=statistics.median(one.first_paint for one in later),
        content=statistics.median(one.content for one in later),
    )
    return Row(page=name, first=first, later=median, new_look=new_look, memory_mb=memory)


def _visit(browser: Browser, url: str, content: str) -> Load:
    context = browser.new_context()
    page = context.new_page()
    began = time.perf_counter()
    page.goto(url)
    page.wait_for_selector(content, timeout=_PATIENCE_MS)
    content_ms = (time.perf_counter() - began) * 1000
    first_paint = page.evaluate(_FIRST_PAINT)
    context.close()
    return Load(first_paint=first_paint, content=content_ms)


def _print(row: Row) -> None:
    visits = {
        "server just started": row.first,
        f"median of {_NUM_LOADS} later": row.later,
        "looked at again": row.new_look,
    }
    print(f"{row.page}; the server holds {row.memory_mb:,.0f} MB")
    for name, load in visits.items():
        verdict = "" if load.first_paint < _TARGET_MS else f", more than {_TARGET_MS}"
        print(
            f"  {name:<20} first paint {load.first_paint:5.0f} ms, content {load.content:5.0f} ms"
            f"{verdict}"
        )


if __name__ == "__main__":
    sys.exit(main())
