"""The agent's parts: uploads, the owner's lease, outcomes."""

from __future__ import annotations

import time

import pytest

from checkpoints.errors import StoreUnreachable
from checkpoints.fence import claim_attempt, commit, read_head
from checkpoints.layout import STEPS, heartbeat_key, manifest_key, shard_key
from checkpoints.manifest import Manifest, ObjectRecord
from checkpoints.store import open_store
from orchestrator.agent.facts import AttemptFacts
from orchestrator.agent.lease import OwnerLease
from orchestrator.agent.notice import NoticeWatch, local_notices
from orchestrator.agent.uploads import LogUploader, SpoolUploader
from orchestrator.attempts import AgentExit, EndReason, reason_for_exit
from orchestrator.clock import SystemClock
from orchestrator.ledger.fold import CommitView, fold
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.measurements import MeasurementReader, steps_of
from tests.orchestrator.histories import at, make_offer, make_record, make_step
from train.spool import (
    Commit,
    Flush,
    Notice,
    Spool,
    Uploaded,
    read_notice,
    spool_path,
    uploaded_path,
    write_notice,
)


@pytest.fixture
def store(tmp_path):
    return open_store((tmp_path / "store").as_uri())


def test_spool_reaches_the_run_folder_bit_for_bit(store, tmp_path):
    spool = Spool(spool_path(tmp_path))
    uploader = SpoolUploader(store, 3, tmp_path)
    steps = [make_step(1, 0, loss=1 / 3), make_step(2, 1, loss=2.718281828459045e-5)]
    for step in steps:
        spool.append(step)
        uploader.collect()
        uploader.upload()
    assert steps_of(MeasurementReader(store).read()) == [(3, step) for step in steps]


def test_flush_is_answered_after_everything_before_it_is_stored(store, tmp_path):
    spool = Spool(spool_path(tmp_path))
    uploader = SpoolUploader(store, 1, tmp_path)
    spool.append(make_step(1, 0))
    spool.append(Flush(at=at(1)))
    uploader.collect()
    assert uploader.wants_upload
    assert not uploaded_path(tmp_path).exists()
    uploader.upload()
    size = spool_path(tmp_path).stat().st_size
    uploaded = Uploaded.model_validate_json(uploaded_path(tmp_path).read_bytes())
    assert uploaded.num_bytes == size
    assert not uploader.wants_upload


class Down:
    """A store that cannot be reached until it is told to come back."""

    def __init__(self, inner):
        self.inner, self.is_down = inner, True

    def __getattr__(self, name):
        if self.is_down:
            raise StoreUnreachable("down", "Try again.")
        return getattr(self.inner, name)


def test_store_that_is_down_for_a_while_costs_no_record(store, tmp_path):
    down = Down(store)
    spool = Spool(spool_path(tmp_path))
    uploader = SpoolUploader(down, 1, tmp_path)
    for number in (1, 2):
        spool.append(make_step(number, number))
        uploader.collect()
        with pytest.raises(StoreUnreachable):
            uploader.upload()
    down.is_down = False
    uploader.upload()
    uploader.upload()
    assert [step.step for _, step in steps_of(MeasurementReader(store).read())] == [1, 2]


class LosesReplies:
    """A store whose next put succeeds although it raises."""

    def __init__(self, inner):
        self.inner, self.loses = inner, True

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def put(self, key, data):
        self.inner.put(key, data)
        if self.loses:
            self.loses = False
            raise StoreUnreachable("the reply was lost", "Try again.")


def test_object_whose_reply_was_lost_is_written_again_as_it_was(store, tmp_path):
    spool = Spool(spool_path(tmp_path))
    uploader = SpoolUploader(LosesReplies(store), 1, tmp_path)
    reader = MeasurementReader(store)
    spool.append(make_step(1, 1))
    uploader.collect()
    with pytest.raises(StoreUnreachable):
        uploader.upload()
    assert len(reader.read()) == 1
    spool.append(make_step(2, 2))
    uploader.collect()
    uploader.upload()
    assert [step.step for _, step in steps_of(reader.read())] == [1, 2]
    assert len(store.list(STEPS)) == 2


def test_log_is_uploaded_piece_by_piece(store, tmp_path):
    log = tmp_path / "train.log"
    log.touch()
    uploader = LogUploader(store, 2, log)
    for text in ("first\n", "", "second\n"):
        with log.open("a") as file:
            file.write(text)
        uploader.upload()
    pieces = [store.get(entry.key).data for entry in store.list("logs/")]
    assert pieces == [b"first\n", b"second\n"]


def test_trainer_learns_the_earliest_of_several_deadlines(tmp_path):
    source, target = tmp_path / "metadata.json", tmp_path / "notice.json"
    watch = NoticeWatch(local_notices(source), target, poll_seconds=0.01)
    watch.pass_on(Notice(deadline_at=at(120)))
    watch.pass_on(Notice(deadline_at=at(200)))
    assert read_notice(target) == Notice(deadline_at=at(120))
    write_notice(source, Notice(deadline_at=at(30)))
    give_up_at = time.monotonic() + 10
    while watch.from_cloud is None and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert read_notice(target) == Notice(deadline_at=at(30))


def test_lease_runs_out_only_when_the_heartbeat_stands_still(store):
    store.put(heartbeat_key("boss"), b"1")
    lease = OwnerLease(store, "boss", lease_seconds=15, silent_seconds=10, monotonic_now=0)
    assert not lease.is_lost(9)
    store.put(heartbeat_key("boss"), b"2")
    assert not lease.is_lost(15)
    assert not lease.is_lost(25)
    assert lease.is_lost(26)


def test_lease_runs_out_when_the_store_cannot_be_reached(store):
    lease = OwnerLease(Down(store), "boss", lease_seconds=15, silent_seconds=10, monotonic_now=0)
    assert not lease.is_lost(15)
    assert lease.is_lost(16)


def test_an_owner_is_not_silent_while_the_store_is_down(store):
    store.put(heartbeat_key("boss"), b"1")
    silent = Down(store)
    lease = OwnerLease(store, "boss", lease_seconds=30, silent_seconds=10, monotonic_now=0)
    assert not lease.is_lost(1)
    assert not lease.is_lost(6)  # five seconds of silence
    lease._store = silent
    assert not lease.is_lost(8)
    assert not lease.is_lost(18)
    lease._store = store  # the owner has not had its turn yet
    assert not lease.is_lost(20)
    assert not lease.is_lost(25)
    assert lease.is_lost(26)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (AgentExit.DONE, EndReason.SUCCEEDED),
        (AgentExit.PREEMPTED, EndReason.PREEMPTED),
        (AgentExit.FENCED, EndReason.FENCED),
        (AgentExit.STOPPED, EndReason.STOPPED),
        (AgentExit.HANG, EndReason.HANG),
        (AgentExit.FAILED, EndReason.TRAINING_FAILED),
        (-9, EndReason.NODE_LOST),
        (139, EndReason.NODE_LOST),
    ],
)
def test_exit_status_tells_the_reason_and_unknown_ones_mean_a_lost_node(status, reason):
    assert reason_for_exit(status) is reason


def committed(store, attempt, step, where=None):
    key = shard_key(step, attempt, 0, 1)
    manifest = Manifest(
        run="demo",
        attempt=attempt,
        step=step,
        parent=read_head(store)[0].manifest,
        world_size=1,
        created_at=at(step),
        store=where,
        objects=(ObjectRecord(key=key, size=7),),
        tensors={},
        state={},
    )
    commit(store, manifest)


def test_a_commit_whose_answer_was_lost_is_told_at_the_attempt_s_end(store):
    record = make_record()
    claim = claim_attempt(store, claimed_by="a", claimed_at=at(0), world_size=1, offer={})
    facts = AttemptFacts(store, claim, SystemClock(), spec=record.spec, offer=make_offer())
    facts.started("one")
    for step in (2, 3, 4):
        committed(store, claim.attempt, step)
    told = Commit(
        at=at(3), step=3, manifest=manifest_key(3, 1), num_bytes=7, num_objects=1, seconds=1.0
    )
    facts.measured(told)
    facts.ended(EndReason.SUCCEEDED, 4, None)
    facts.flush()
    commits = fold(record, LedgerReader(store).read()).commits
    assert [(one.step, one.place) for one in commits] == [(2, None), (3, None), (4, None)]


def test_commits_that_earlier_agents_did_not_live_to_tell_are_told_along_the_chain(store):
    record = make_record(checkpoints={"stores": {"aws/us-east-1": "file:///near"}})
    first = claim_attempt(store, claimed_by="a", claimed_at=at(0), world_size=1, offer={})
    committed(store, first.attempt, 1, where="file:///near/demo")
    committed(store, first.attempt, 2)
    second = claim_attempt(store, claimed_by="b", claimed_at=at(3), world_size=1, offer={})
    facts = AttemptFacts(store, second, SystemClock(), spec=record.spec, offer=make_offer())
    last = CommitView(
        attempt=1, at=at(2), step=2, manifest=manifest_key(2, 1), num_bytes=7, num_objects=1
    )
    facts.inherited([last])
    commits = fold(record, LedgerReader(store).read()).commits
    assert [(one.step, one.place) for one in commits] == [(1, "aws/us-east-1")]
