"""What a shell offers at TAB, asked for by a real bash, and what `--version` says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from orchestrator.home import run_home
from orchestrator.runs import remember_run

_ASK = """
eval "$(orchestrate completion bash)"
compopt() { :; }  # bash knows it only while it completes
for line in "$@"; do
  COMP_WORDS=($line) COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
  _orchestrate_completion orchestrate
  echo "${COMPREPLY[@]}"
done
"""


def test_bash_completes_commands_options_and_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATE_HOME", str(tmp_path))
    for name in ("vicuna-7b", "vicuna-13b"):
        # Nothing is there: a completion that asked the store would end or wait.
        remember_run(run_home("s3://nowhere/runs", name), name, "s3://nowhere/runs")
    offered = {
        "orchestrate sta": "status",
        "orchestrate status --js": "--json",
        "orchestrate checkpoints verify vic": "vicuna-13b vicuna-7b",
        "orchestrate serve vicuna-7b vic": "vicuna-13b",
    }
    done = subprocess.run(
        ["bash", "-euc", _ASK, "bash", *offered],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == list(offered.values())


def test_completing_a_command_loads_none_of_them():
    code = (
        "import sys, orchestrator.cli as ours\n"
        "found = ours.cli.shell_complete(ours.cli.make_context('orchestrate', ['x']), 'st')\n"
        "assert [one.value for one in found] == ['status', 'stop'], found\n"
        "assert not any(name.startswith('orchestrator.cli.') for name in sys.modules)\n"
        "assert 'pydantic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version_says_what_is_installed_and_imports_none_of_it():
    code = (
        "import sys\n"
        "from orchestrator.cli.version import describe\n"
        "print(describe())\n"
        "assert not {'torch', 'sky', 'boto3', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, python, *packages = done.stdout.splitlines()
    assert first.startswith("orchestrate 0.")
    assert python.startswith("CPython 3.")
    assert [line.split()[0] for line in packages][:2] == ["skypilot", "torch"]
    assert not packages[1].endswith("not installed")
