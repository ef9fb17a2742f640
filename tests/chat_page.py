"""The chat page as its users start it and use it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page

# An answer is there within a second; these machines may be busy with other tests.
PATIENCE_MS = 30_000


@contextmanager
def chat_page(url: str, **environment: str) -> Iterator[str]:
    """Yield the address of a page before the server at `url`, as `serve --ui` starts it."""
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator.chat.page", url],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.wait(30)


def open_page(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("textarea", timeout=PATIENCE_MS)


def say(page: Page, question: str) -> None:
    page.locator("textarea").first.fill(question)
    page.keyboard.press("Enter")


def wait_for(page: Page, text: str, patience_ms: float = PATIENCE_MS) -> None:
    page.get_by_text(text).last.wait_for(timeout=patience_ms)
