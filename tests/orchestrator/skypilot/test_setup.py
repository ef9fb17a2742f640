"""The set-up that train.yaml runs on each node, on this machine, in a home of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints.layout import input_key
from checkpoints.store import open_store
from orchestrator.cloud.skypilot.launcher import stage_wheel
from orchestrator.cloud.skypilot.task import read_task

CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"


@pytest.fixture
def set_up(s3_url, tmp_path):
    """Stage the wheel in a real bucket, and give a function that sets a node up from there."""
    folder = f"{s3_url}/set-up-{tmp_path.name}"
    store = open_store(folder)
    wheel = stage_wheel(store)
    uv = Path(sys.executable).parent
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PATH": f"{uv}:/usr/local/bin:/usr/bin:/bin",
        "ORCHESTRATE_RUN_FOLDER": folder,
        "ORCHESTRATE_WHEEL": wheel.name,
        "ORCHESTRATE_WHEEL_SHA256": wheel.sha256,
        "ORCHESTRATE_EXTRAS": "",  # the trainer's libraries are gigabytes
    }

    def run(damage: bytes | None = None) -> subprocess.CompletedProcess[str]:
        if damage is not None:
            store.put(input_key(wheel.sha256, wheel.name), damage)
        script = read_task("train.yaml")["setup"]
        return subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.slow
def test_a_node_gets_the_wheel_and_the_versions_of_the_constraints(set_up, tmp_path):
    done = set_up()
    assert done.returncode == 0, done.stderr
    show = (
        "import importlib.metadata as m, orchestrator\n"
        "print(orchestrator.__file__, *(f'{d.name}=={d.version}' for d in m.distributions()))"
    )
    python = tmp_path / "orchestrate-env" / "bin" / "python"
    seen = subprocess.run([python, "-I", "-c", show], capture_output=True, text=True, check=True)
    file, *installed = seen.stdout.split()
    assert file.startswith(str(tmp_path))
    pinned = set(re.findall(r"^[^#;\s]+", CONSTRAINTS.read_text().lower(), re.MULTILINE))
    libraries = [one.lower() for one in installed if not one.startswith("spot-orchestrator")]
    assert "click==8.1.8" in libraries
    assert not [one for one in libraries if one.replace("_", "-") not in pinned | _dashed(pinned)]
    again = set_up()  # the next launch on an image that has it all
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_a_damaged_wheel_is_not_installed(set_up):
    done = set_up(damage=b"no wheel")
    assert done.returncode != 0
    assert "is damaged: its sha256 differs" in done.stderr


def _dashed(names: set[str]) -> set[str]:
    return {name.replace("_", "-") for name in names}
