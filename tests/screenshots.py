"""Write the pictures of docs/dashboard.md: `python -m tests.screenshots`, about 15 s."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from tests.browser import Dashboard, open_browser, serve, watch
from tests.many_runs import add_run_under_way, fill_store, report

TARGET = Path(__file__).parents[1] / "docs" / "dashboard"
_RUN, _NUM_RUNS = "vicuna-7b", 49
_MOST_BYTES = 200_000
_LIST, _PAGE = {"width": 1280, "height": 700}, {"width": 1120, "height": 1200}


def main() -> int:
    """Fill a store, look at its pages, write what is seen."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        url = (Path(folder) / "runs").as_uri()
        now = datetime.now(timezone.utc)
        fill_store(url, now, _NUM_RUNS)
        add_run_under_way(url, _RUN, now)
        with serve(url) as dashboard:
            for scheme in ("light", "dark"):
                with _open_list(browser, dashboard, url, _LIST, scheme) as page:
                    _write(page, f"runs-{scheme}")
                with _open_run(browser, dashboard, url, _PAGE, scheme) as page:
                    if scheme == "dark":  # the one picture has the page's top, the other its charts
                        page.evaluate("document.querySelector('#attempts').scrollIntoView()")
                    _write(page, f"run-{scheme}")
            with _open_run(browser, dashboard, url, None, "light") as page:
                _write(page, "run-phone")
        (Path(folder) / "none").mkdir()
        none = (Path(folder) / "none").as_uri()
        with serve(none) as empty, watch(browser, viewport={"width": 1120, "height": 320}) as page:
            page.goto(f"{empty.url}/")
            page.wait_for_selector("text=No runs yet")
            _write(page, "empty")
    return 0


@contextmanager
def _open_list(
    browser: Browser, dashboard: Dashboard, url: str, size: dict[str, int] | None, scheme: str
) -> Iterator[Page]:
    report(url, _RUN, datetime.now(timezone.utc))
    options: dict[str, Any] = {} if size is None else {"viewport": size}
    with watch(browser, phone=size is None, color_scheme=scheme, **options) as page:
        page.goto(f"{dashboard.url}/")
        page.wait_for_selector("table.runs")
        yield page


@contextmanager
def _open_run(
    browser: Browser, dashboard: Dashboard, url: str, size: dict[str, int] | None, scheme: str
) -> Iterator[Page]:
    with _open_list(browser, dashboard, url, size, scheme) as page:
        page.get_by_role("link", name=_RUN, exact=True).click()
        page.wait_for_selector("#provenance")
        yield page


def _write(page: Page, name: str) -> None:
    path = TARGET / f"{name}.png"
    num_bytes = len(page.screenshot(path=path))
    logging.info("%s: %s kB", path.relative_to(TARGET.parents[1]), num_bytes // 1000)
    if num_bytes > _MOST_BYTES:
        raise ValueError(f"{path.name} is larger than {_MOST_BYTES // 1000} kB.")


if __name__ == "__main__":
    sys.exit(main())
