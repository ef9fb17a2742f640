"""Boundaries: who imports whom, what starts fast, what the folders hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.splitlines()[-1].split())


HELP = """
sys.argv = ["orchestrate", "--help"]
from orchestrator.cli import main
try:
    main()
except SystemExit:
    pass
"""


def test_help_starts_none_of_the_heavy_packages():
    loaded = modules_after(HELP)
    heavy = {"torch", "transformers", "sky", "wandb", "boto3", "obstore", "pydantic", "rich"}
    assert not heavy & loaded


@pytest.mark.parametrize(
    "module",
    [
        *("orchestrator.cli.launch", "orchestrator.cli.reports", "orchestrator.cli.control"),
        *("orchestrator.cli.checkpoints", "orchestrator.cli.serve", "orchestrator.agent.agent"),
        *("orchestrator.cloud.local.supervisor", "train.data.prepare", "train.config"),
    ],
)
def test_no_process_but_the_trainer_imports_torch_or_skypilot(module):
    assert not {"torch", "transformers", "sky"} & modules_after(f"import {module}")


@pytest.mark.parametrize("module", ["launch", "plan", "reports", "control", "simulate"])
def test_no_command_loads_numpy_or_process_pools_before_it_needs_them(module):
    loaded = modules_after(f"import orchestrator.cli.{module}")
    assert not {"numpy", "multiprocessing"} & loaded


def test_import_contracts_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("package", "exempt"),
    [("train", {"config", "spool", "errors", "termination"}), ("orchestrator", {"cloud"})],
)
def test_no_module_is_forgotten_in_the_import_contracts(package, exempt):
    contracts = (ROOT / "pyproject.toml").read_text().partition("[tool.importlinter]")[2]
    folder = ROOT / package
    modules = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    for module in modules - exempt - {"__init__"}:
        assert f'"{package}.{module}"' in contracts, module
