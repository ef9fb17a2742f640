"""A real browser before the real server; whatever a page of ours may not do is noted and fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)(/\S*)")
_PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "is_mobile": True,
    "has_touch": True,
}
# What a page with a policy was kept from; a page cannot hide it, for this runs before its scripts.
_TELL = """addEventListener("securitypolicyviolation", (event) =>
  tellOfViolation(`${event.violatedDirective} ${event.blockedURI}`));"""


class NoBrowser(Exception):
    """There is no browser on the PATH."""


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Yield a Chromium that runs without a window.

    Raises:
        NoBrowser: none is installed; tests must fail then, for skipped ones would go unseen.
    """
    found = [path for path in map(shutil.which, _BROWSERS) if path is not None]
    if not found:
        names = ", ".join(_BROWSERS)
        raise NoBrowser(f"None of {names} is on the PATH. Try: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0])
        yield browser
        browser.close()


@contextmanager
def watch(
    browser: Browser, *, expected: Sequence[str] = (), phone: bool = False, **options: Any
) -> Iterator[Page]:
    """Yield a fresh page, and fail at its end if it did what no page may do.

    That is: a warning or an error on its console, an exception, a dialog, a request that leaves
    loopback, something that its Content-Security-Policy forbids. `expected` are patterns of what
    may be on the console, such as the browser's own word on an answer that is an error.
    """
    context = browser.new_context(**(_PHONE if phone else {}), **options)
    problems: list[str] = []
    _note_problems(context, problems)
    yield context.new_page()
    context.close()
    found = [one for one in problems if not any(re.search(each, one) for each in expected)]
    assert not found, "\n".join(found)


def _note_problems(context: BrowserContext, problems: list[str]) -> None:
    def hear(message: ConsoleMessage) -> None:
        if message.type in ("warning", "error"):
            problems.append(f"console {message.type}: {message.text}")

    def ask(url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "file") and parts.hostname != "127.0.0.1":
            problems.append(f"request of {url}")

    context.on("console", hear)
    context.on("weberror", lambda error: problems.append(f"exception: {error.error}"))
    context.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    context.on("request", lambda request: ask(request.url))
    context.expose_function("tellOfViolation", lambda what: problems.append(f"forbidden: {what}"))
    context.add_init_script(_TELL)


def barriers(page: Page) -> list[str]:
    """Return what axe-core finds serious or critical for people who use the page otherwise."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']} ({one['impact']}) at {node['target']}: {node['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


class Dashboard:
    """`orchestrate dashboard --store URL` as users start it."""

    def __init__(self, store: str, *arguments: str) -> None:
        """Start it at a free port, and return when it listens."""
        self._store, self._arguments = store, arguments
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, again at the port that it had."""
        orchestrate = str(Path(sys.executable).with_name("orchestrate"))
        options = ["--store", self._store, "--port", str(self.port), *self._arguments]
        self.process = subprocess.Popen(
            [orchestrate, "dashboard", *options],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert self.process.stderr is not None
        said = self.process.stderr.readline()
        found = _ADDRESS.search(said)
        assert found is not None, said
        self.port, self.printed = int(found[1]), found[0]
        self.url = f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def serve(store: str, *arguments: str) -> Iterator[Dashboard]:
    """Yield a server of its own."""
    dashboard = Dashboard(store, *arguments)
    try:
        yield dashboard
    finally:
        dashboard.kill()
