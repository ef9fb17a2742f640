"""A trainer whose disk takes nothing any more."""

import pytest

from checkpoints.fence import read_head
from tests.fault_record import record_fault
from tests.small_disk import small_disk
from tests.train.attempts import NUM_STEPS
from train.spool import OutcomeKind

pytestmark = pytest.mark.slow


def committed(run):
    head = read_head(run.store)
    return head[0].step if head else 0


def test_a_full_disk_under_the_spool_stops_neither_steps_nor_saves(straight_run, new_run):
    with small_disk(new_run.folder / "spool-1") as disk:
        new_run.start()
        new_run.wait_until(lambda: new_run.records("step"))
        disk.fill()
        new_run.wait_until(lambda: committed(new_run) >= 2)
        disk.empty()
        disk.use_up_files()
        assert new_run.wait() == [0, 0], new_run.log.read_text()
        # Written to the full disk: the room for it was kept.
        assert [o.outcome for o in new_run.outcomes()] == [OutcomeKind.DONE] * 2
        assert new_run.step_values() == straight_run.step_values()
        told = [record.step for record in new_run.records("commit")]
    assert told == [2, 4, 6]
    lost = NUM_STEPS - committed(new_run)
    assert lost == 0
    record_fault(
        "F9",
        "no bytes, then no inodes under the spool",
        injected=disk.num_proven,
        committed_steps_lost=lost,
    )


def test_a_disk_that_becomes_read_only_stops_neither_steps_nor_saves(new_run):
    with small_disk(new_run.folder / "spool-1") as disk:
        new_run.start()
        new_run.wait_until(lambda: new_run.records("step"))
        disk.make_read_only()
        new_run.wait()
        assert new_run.outcomes() == [None, None]
    lost = NUM_STEPS - committed(new_run)
    assert lost == 0, new_run.log.read_text()
    assert "wait in memory" in new_run.log.read_text()
    record_fault(
        "F9", "the spool's disk is read-only", injected=disk.num_proven, committed_steps_lost=lost
    )
