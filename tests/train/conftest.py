"""A small model with its data, a run of it that nothing interrupts, and runs that tests spoil."""

import fcntl
import json
import os

import pytest

from tests.train.attempts import MODEL, running
from train.data.prepare import prepare


@pytest.fixture(scope="session")
def inputs_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "config.json").write_text(json.dumps(MODEL))
    conversations = [
        {
            "id": f"c{n}",
            "conversations": [
                {"from": "human", "value": f"Count to {n}, please."},
                {"from": "gpt", "value": ", ".join(str(k) for k in range(1, n + 1))},
            ],
        }
        for n in range(1, 40)
    ]
    (folder / "train.json").write_text(json.dumps(conversations))
    prepare(
        model=folder,
        train=folder / "train.json",
        max_length=200,
        eval_fraction=0.1,
        seed=0,
        output=folder / "prepared",
    )
    return folder / "prepared"


@pytest.fixture
def new_run(tmp_path, inputs_dir):
    with running(tmp_path, inputs_dir) as run:
        yield run


@pytest.fixture(scope="session")
def straight_run(tmp_path_factory, inputs_dir):
    """Return a run that nothing interrupted; pytest-xdist's workers share one."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "straight-run"
    with (shared / "straight-run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_there = folder.exists()
        with running(folder, inputs_dir) as run:
            run.spool_dir, run.log = folder / "spool-1", folder / "log-1.txt"
            if not is_there:
                run.start(torchrun=True)
                assert run.wait() == [0], run.log.read_text()
    return run
