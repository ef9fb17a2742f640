"""Documents say what the code does."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli import cli
from tests.fault_record import FAULT_RECORD, record_fault
from tests.simulation.plan import ROWS

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


def test_each_row_of_the_reliability_table_names_a_test_that_is_there():
    page = (ROOT / "docs" / "reliability.md").read_text()
    commands = re.findall(r"\| `pytest -m '' (\S+) -k (\w+)` \|$", page, re.MULTILINE)
    assert len(commands) > 20
    for path, name in commands:
        assert f"def {name}(" in (ROOT / path).read_text(), name
    rows = page.partition("<!-- table: begin -->")[2].partition("<!-- table: end -->")[0]
    simulated = re.findall(r"^\| (F\d+) \| (.+) \(simulated\) .* \| `(.+)` \|$", rows, re.MULTILINE)
    assert {command for _, _, command in simulated} == {"python -m tests.simulation --seeds 500"}
    assert {(what, fault) for fault, what, _ in simulated} == set(ROWS.items())
    assert len(commands) + len(simulated) == rows.count("\n| F")


def test_rows_of_one_fault_are_added_up_and_a_fault_that_never_fired_is_no_row(
    tmp_path, monkeypatch
):
    render = runpy.run_path(str(ROOT / ".ci" / "write_reliability.py"))["render"]
    monkeypatch.setenv(FAULT_RECORD, str(tmp_path / "faults.jsonl"))
    for usd, lost in ((Decimal("0.000000"), 0), (Decimal("0.25"), None)):
        record_fault(
            "F5", "a|b", injected=3, usd_unaccounted=usd, committed_steps_lost=lost, command="c"
        )
    with pytest.raises(AssertionError, match="never fired"):
        record_fault("F5", "a|b", injected=0)
    _, _, row = render((tmp_path / "faults.jsonl").read_text().splitlines()).splitlines()
    assert row == "| F5 | a&#124;b | 6 | 0 | 0.25 | – | `c` |"


def test_the_threat_model_names_tests_that_exist():
    text = (ROOT / "docs" / "threat-model.md").read_text()
    named = set(re.findall(r"`((?:\w+/)*test_\w+\.py)`", text))
    assert len(named) > 12
    there = [path.as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in there)]


def test_every_page_is_in_the_sites_navigation():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    listed = set(re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == pages
