"""An agent whose node's disk takes nothing any more."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone

import pytest

from checkpoints.fence import read_head
from checkpoints.store import open_store
from orchestrator.agent.health import find_write_fault
from orchestrator.agent.notice import NoticeWatch, local_notices
from orchestrator.agent.uploads import SpoolUploader
from orchestrator.attempts import AgentExit, EndReason
from orchestrator.ledger.facts import AttemptEnded
from tests.fault_record import record_fault
from tests.orchestrator.histories import at, make_step
from tests.orchestrator.skypilot.gang import GangRun, prepare
from tests.small_disk import small_disk
from train.spool import (
    Flush,
    Notice,
    Spool,
    Step,
    read_notice,
    read_records,
    spool_path,
    uploaded_path,
    write_notice,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("spoil", ["fill", "use_up_files"])
def test_on_a_full_disk_notices_and_uploads_reach_the_trainer_again_and_again(tmp_path, spoil):
    deadline_at = datetime.now(timezone.utc) + timedelta(minutes=2)
    with small_disk(tmp_path / "scratch") as disk:
        store = open_store((tmp_path / "store").as_uri())
        spool = Spool(spool_path(disk.folder))
        uploader = SpoolUploader(store, 1, disk.folder)
        source, target = tmp_path / "metadata.json", disk.folder / "notice.json"
        watch = NoticeWatch(local_notices(source), target, poll_seconds=0.01)
        for number in range(4):
            spool.append(make_step(number + 1, number))
        spool.append(Flush(at=at(4)))
        getattr(disk, spoil)()
        for sooner in (0, 10, 20):
            earlier = Notice(deadline_at=deadline_at - timedelta(seconds=sooner))
            watch.pass_on(earlier)
            assert read_notice(target) == earlier
        uploader.collect()
        uploader.upload()
        size = spool_path(disk.folder).stat().st_size
        assert f'"num_bytes":{size}' in uploaded_path(disk.folder).read_text()
        write_notice(source, Notice(deadline_at=deadline_at - timedelta(seconds=60)))
        give_up_at = time.monotonic() + 20
        while watch.from_cloud is None and time.monotonic() < give_up_at:
            time.sleep(0.01)
        assert read_notice(target) == watch.from_cloud
    what = "notices and uploads on a node's full disk"
    record_fault("F9", what, injected=disk.num_proven)


def test_a_disk_that_takes_no_file_is_said_to_be_the_node_s_fault(tmp_path):
    with small_disk(tmp_path / "scratch") as disk:
        assert find_write_fault(disk.folder) is None
        disk.make_read_only()
        assert "Read-only file system" in str(find_write_fault(disk.folder))


def test_a_node_whose_disk_is_full_saves_on_its_notice_and_is_no_failure(tmp_path):
    """The whole node: agent, torchrun and two ranks, started as on SkyPilot."""
    with small_disk(tmp_path / "scratch", megabytes=32) as disk, ExitStack() as stack:
        run = GangRun(
            tmp_path,
            prepare(),
            stack,
            nodes={"count": 1, "accelerators": "A100-80GB:8"},
            train={"num_steps": 5000, "global_batch": 4, "micro_batch": 2, "precision": "fp32"},
            checkpoints={"interval": "10000 steps"},
        )
        agent = json.dumps({"scratch": str(disk.folder), "checks_node": False})
        (node,) = run.launch(ranks=2, ORCHESTRATE_AGENT=agent)
        spool = spool_path(disk.folder / "spool")
        run.wait_for(lambda: any(isinstance(one, Step) for one in read_records(spool, 0)[0]))
        disk.fill()
        disk.use_up_files()
        run.announce(0, 60)
        assert node.wait() == AgentExit.PREEMPTED, node.said()
        head, _ = read_head(run.store)
        assert head.step > 0
        (ended,) = run.facts(AttemptEnded)
        assert ended.reason is EndReason.PREEMPTED
        left = node.processes()
        assert left == []
    record_fault(
        "F9",
        "no bytes and no inodes on a node's disk, then its notice",
        injected=disk.num_proven,
        committed_steps_lost=max(0, ended.step - head.step),
        orphans=len(left),
    )
