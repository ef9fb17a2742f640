"""An agent whose node's disk takes nothing any more."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest

from checkpoints.store import open_store
from orchestrator.agent.health import find_write_fault
from orchestrator.agent.notice import NoticeWatch, local_notices
from orchestrator.agent.uploads import SpoolUploader
from tests.fault_record import record_fault
from tests.orchestrator.histories import at, make_step
from tests.small_disk import small_disk
from train.spool import Flush, Notice, Spool, read_notice, spool_path, uploaded_path, write_notice

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
    record_fault("F9", what, injected=disk.num_refused)


def test_a_disk_that_takes_no_file_is_said_to_be_the_node_s_fault(tmp_path):
    with small_disk(tmp_path / "scratch") as disk:
        assert find_write_fault(disk.folder) is None
        disk.make_read_only()
        assert "Read-only file system" in str(find_write_fault(disk.folder))
