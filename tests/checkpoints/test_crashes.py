"""A saver killed at any operation leaves a whole checkpoint and a run that goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAVE = ["get", "put", "list", "get", "create", "replace"]
CLAIM = ["get", "create", "replace"]


def crashes(scenario, folder):
    """Run every crash of a scenario; the script checks what each one leaves."""
    script = Path(__file__).with_name("crashes.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), scenario, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("scenario", "operations"), [("save", SAVE), ("claim", CLAIM)])
def test_a_crash_at_any_operation_leaves_a_whole_checkpoint_and_a_run_that_goes_on(
    scenario, operations, tmp_path
):
    found = crashes(scenario, tmp_path)
    for when in ("before", "within", "after"):
        fired = [crash for crash in found if crash["when"] == when]
        # The last run of each kind meets no crash: every operation was hit before.
        assert [crash["name"] for crash in fired] == [*operations, None]
        survivors = [crash["step"] for crash in fired]
        if scenario == "claim":
            assert set(survivors) == {5}
        else:
            is_committed = [name == "replace" and when == "after" for name in operations]
            assert survivors == [*(6 if new else 5 for new in is_committed), 6]
