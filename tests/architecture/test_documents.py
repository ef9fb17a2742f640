"""Documents say what the code does."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from orchestrator.cli import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_reference_page_is_what_the_code_says():
    render = runpy.run_path(str(ROOT / ".ci" / "write_reference.py"))["render"]
    assert (ROOT / "docs" / "reference.md").read_text() == render(), (
        "run: python .ci/write_reference.py"
    )


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


def test_the_threat_model_names_tests_that_exist():
    text = (ROOT / "docs" / "threat-model.md").read_text()
    named = set(re.findall(r"`((?:\w+/)*test_\w+\.py)`", text))
    assert len(named) > 12
    there = [path.as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in there)]
