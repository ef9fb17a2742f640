"""The documentation site as a reader has it: files on a disk, no server, no network."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.browser import open_browser, watch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_site_opened_as_files_is_searched_without_a_request_to_anyone():
    subprocess.run([ROOT / ".ci" / "docs"], check=True, capture_output=True)
    with open_browser() as browser, watch(browser) as page:
        page.goto((ROOT / "build" / "site" / "index.html").as_uri())
        page.get_by_role("button", name="Search").click()
        page.keyboard.type("preemption notice")
        page.get_by_role("option", name="Second by second").click()
        page.get_by_role("heading", name="What happens at a preemption").wait_for()
