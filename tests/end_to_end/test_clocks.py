"""A run whose owner's clock is set by minutes while nodes train, in both directions."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest

from checkpoints.store import open_store
from orchestrator.clock import SystemClock
from orchestrator.cloud.local.launcher import NODES_NAME
from orchestrator.cloud.local.supervisor import Supervisor
from orchestrator.home import run_home
from orchestrator.ledger.fold import fold
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.record import read_record
from tests.end_to_end.losses import NOTHING, losses
from tests.fault_record import record_fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
JUMP = timedelta(minutes=10)
# Longer than the lease of a local node, which an owner that waits for its clock would let run out.
STAYS_S = 30
TRAIN = {"num_steps": 100_000, "global_batch": 4, "precision": "fp32"}


class SetClock(SystemClock):
    """The machine's clock, `ahead` of what it was; each new setting that was read is counted."""

    def __init__(self) -> None:
        self.ahead = timedelta()
        self.read: list[timedelta] = []

    def now(self):
        ahead = self.ahead
        if ahead and ahead not in self.read:
            self.read.append(ahead)
        return super().now() + ahead


def test_a_clock_that_is_set_by_minutes_costs_no_node_and_no_negative_time(workplace, monkeypatch):
    spec = workplace.write_spec(train=TRAIN)
    assert workplace.run("launch", spec, "--yes", "--detach").returncode == 0
    (supervisor,) = workplace.supervisors()
    supervisor.kill()
    # Ours takes its place, as on a machine whose supervisor was killed.
    for name in ("ORCHESTRATE_HOME", "OMP_NUM_THREADS", "WANDB_MODE"):
        monkeypatch.setenv(name, workplace.environment[name])
    folder = (workplace.folder / "store").as_uri()
    store, clock = open_store(f"{folder}/small"), SetClock()
    record = read_record(store)
    nodes = run_home(record.spec.store, record.run) / NODES_NAME
    ours = threading.Thread(target=Supervisor(store, record, nodes, clock).run)
    ours.start()
    before = workplace.look()["last_commit_step"]
    workplace.wait_for(lambda: workplace.look()["last_commit_step"] > before)
    began = last_attempt(workplace)
    for ahead in (JUMP, -JUMP):
        clock.ahead = ahead
        time.sleep(STAYS_S)
        assert last_attempt(workplace) == began
    clock.ahead = timedelta()
    assert workplace.run("stop", "small", "--yes").returncode == 0
    ours.join(60)
    assert not ours.is_alive()

    status = workplace.document("status", "small")
    last = status["attempts"][-1]
    assert (status["state"], last["end_reason"]) == ("STOPPED", "stopped")
    assert last["attempt"] == began
    assert status["last_commit_step"] == status["step"]
    seconds = workplace.document("cost", "small")["seconds"]
    assert all(part >= 0 for part in seconds.values())
    for one in fold(record, LedgerReader(store).read()).launches:
        assert one.started_at <= one.ready_at <= one.ended_at
    found = losses(workplace, folder)
    assert found == NOTHING
    record_fault(
        "F10",
        "an owner's clock set by ±10 min, and right at the end",
        injected=len(clock.read),
        **found.row(),
    )


def last_attempt(place):
    return place.look()["attempts"][-1]["attempt"]
