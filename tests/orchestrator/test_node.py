"""Local nodes: real processes, really killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from orchestrator.agent.processes import kill_tree
from orchestrator.cloud.local import node as local_node

# A child in a session of its own that starts a grandchild and leaves it behind: torchrun's workers
# have sessions of their own too, and W&B's service outlives the process that started it.
FAMILY = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
time.sleep(600)
"""


def wait_for(condition, seconds=10.0):
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "it never came true"
        time.sleep(0.02)


def marked(launch: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ORCHESTRATE_NODE") == launch:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture
def family(tmp_path):
    launch = f"test-{os.getpid()}-{time.monotonic_ns()}"
    folder = tmp_path / launch
    local_node.scratch_folder(folder).mkdir(parents=True)
    (local_node.scratch_folder(folder) / "shard").write_bytes(b"x")
    process = subprocess.Popen(
        [sys.executable, "-c", FAMILY], env={**os.environ, "ORCHESTRATE_NODE": launch}
    )
    node = local_node.LocalNode(folder, launch, process)
    wait_for(lambda: len(marked(launch)) >= 3)
    yield node, launch, folder
    for left in marked(launch):
        left.kill()
    process.wait()


def test_losing_a_node_kills_every_descendant_and_its_disk(family):
    node, launch, folder = family
    node.destroy()
    assert marked(launch) == []
    assert not local_node.scratch_folder(folder).exists()
    assert node.poll() is not None


def test_frozen_node_stands_still_until_it_is_thawed(family):
    node, launch, _ = family
    node.freeze()
    wait_for(lambda: all(one.status() == psutil.STATUS_STOPPED for one in marked(launch)))
    node.thaw()
    wait_for(lambda: all(one.status() != psutil.STATUS_STOPPED for one in marked(launch)))


def test_supervisor_destroys_what_its_predecessor_left(family):
    _, launch, folder = family
    assert local_node.destroy_leftovers(folder.parent) == [launch]
    assert marked(launch) == []
    assert not local_node.scratch_folder(folder).exists()
    assert local_node.destroy_leftovers(folder.parent) == []


def test_killing_the_trainer_reaches_children_in_other_sessions():
    code = (
        "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(600)'], start_new_session=True).pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        kill_tree(process)
        wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
        assert process.poll() == -9
