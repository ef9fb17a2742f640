"""Documents say what the code does."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("page", "renderer"),
    [("reference.md", "render"), ("decisions/README.md", "render_decisions")],
)
def test_written_pages_are_what_the_code_and_the_decisions_say(page: str, renderer: str):
    render = runpy.run_path(str(ROOT / ".ci" / "write_reference.py"))[renderer]
    assert (ROOT / "docs" / page).read_text() == render(), "run: python .ci/write_reference.py"


def test_every_command_in_the_readme_exists():
    named = set(re.findall(r"orchestrate ([a-z]+)", README))
    assert {"launch", "status", "cost", "dashboard"} <= named
    for name in named:
        assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0, name


def test_readme_marks_the_commands_that_ci_runs():
    for name in ("quickstart", "tests"):
        command = [sys.executable, str(ROOT / ".ci" / "readme_command.py"), name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "-c constraints.txt" in done.stdout


def test_files_that_the_readme_points_to_are_there():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_page_is_in_the_sites_navigation():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    listed = set(re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == pages
