"""`orchestrate checkpoints list|verify|prune|pin|unpin`, and what a delete leaves in the store."""

from __future__ import annotations

import json
import secrets
from urllib.parse import urlsplit

import boto3
import pytest

from checkpoints.fence import claim_attempt, commit, read_head, rewind
from checkpoints.inspect import read_manifest
from checkpoints.layout import (
    CHECKPOINTS,
    PINS,
    checkpoint_prefix,
    manifest_key,
    parse_checkpoint_prefix,
    shard_key,
)
from checkpoints.manifest import Manifest, ObjectRecord
from checkpoints.store import open_store
from orchestrator.agent.leftovers import abort_leftovers
from orchestrator.home import run_home
from orchestrator.ledger.facts import RunLaunched
from orchestrator.ledger.fold import fold
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.record import create_record, read_record
from orchestrator.runs import remember_run
from tests.orchestrator.histories import START, Ledger, at, make_record

SHARD = b"x" * 1000


def claim(folder):
    return claim_attempt(folder, claimed_by="a", claimed_at=START, world_size=1, offer={}).attempt


def save(folder, attempt, step):
    key = shard_key(step, attempt, 0, 1)
    folder.put(key, SHARD)
    manifest = Manifest(
        run="demo",
        attempt=attempt,
        step=step,
        parent=read_head(folder)[0].manifest,
        world_size=1,
        created_at=at(step),
        objects=(ObjectRecord(key=key, size=len(SHARD)),),
        tensors={},
        state={},
    )
    commit(folder, manifest)


def make_run(url):
    """Make a run that ended; attempt 1 left a torn save, attempt 2 committed steps 2 to 6."""
    folder = open_store(f"{url}/demo")
    create_record(folder, make_record(store=url, checkpoints={"keep_last": 2}))
    remember_run(run_home(url, "demo"), "demo", url)
    save(folder, claim(folder), 1)
    folder.put(shard_key(2, 1, 0, 1), SHARD)
    attempt = claim(folder)
    for step in range(2, 7):
        save(folder, attempt, step)
    ledger = Ledger()
    ledger.launched()
    ledger.commit(1, attempt=1, step=1)
    for step in range(2, 7):
        ledger.commit(step, attempt=2, step=step)
    ledger.ended(50)
    for entry in ledger.entries:
        folder.create(
            f"events/{entry.writer}/{entry.number:08d}.jsonl", entry.model_dump_json().encode()
        )
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_run((tmp_path / "store").as_uri())


def go_on(folder):
    """Launch the run again, after its end."""
    ledger = Ledger()
    ledger.add(60, RunLaunched(host="laptop"), writer="cli-2")
    folder.create("events/cli-2/00000000.jsonl", ledger.entries[0].model_dump_json().encode())


def points_left(folder):
    return sorted({parse_checkpoint_prefix(entry.key) for entry in folder.list(CHECKPOINTS)})


def test_list_marks_head_its_parent_and_pins(orchestrate, folder):
    assert orchestrate("checkpoints", "pin", "demo", 3)[0] == 0
    code, out, _ = orchestrate("checkpoints", "list", "demo", "--json")
    rows = json.loads(out)["checkpoints"]
    assert code == 0
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    marked = {
        mark: [row["step"] for row in rows if row[mark]]
        for mark in ("is_head", "is_parent", "is_pinned")
    }
    assert marked == {"is_head": [6], "is_parent": [5], "is_pinned": [3]}
    assert {(row["attempt"], row["num_bytes"]) for row in rows} == {(1, 1000), (2, 1000)}
    lines = orchestrate("checkpoints", "list", "demo")[1].splitlines()
    marks = [line.partition("<- ")[2] for line in lines]
    assert marks == ["", "", "pinned", "", "parent", "HEAD"]


def test_prune_follows_the_spec_and_says_what_it_did(orchestrate, folder):
    code, out, _ = orchestrate("checkpoints", "prune", "demo", "--yes", "--json")
    document = json.loads(out)
    assert code == 0
    assert [(one["step"], one["attempt"]) for one in document["checkpoints"]] == [
        *[(1, 1), (2, 1), (2, 2), (3, 2), (4, 2)]
    ]
    assert [one["step"] for one in document["checkpoints"] if not one["is_whole"]] == [2]
    assert document["num_bytes"] > 5 * len(SHARD)
    assert points_left(folder) == [(5, 2), (6, 2)]
    assert orchestrate("checkpoints", "verify", "demo")[0] == 0


def test_prune_clears_up_after_the_last_attempt_of_a_run_that_has_ended(orchestrate, folder):
    folder.put(shard_key(7, 2, 0, 1), SHARD)  # of a save that it did not live to finish
    folder.put(shard_key(8, 3, 0, 1), SHARD)  # not its
    assert orchestrate("checkpoints", "prune", "demo", "--yes")[0] == 0
    assert points_left(folder) == [(5, 2), (6, 2), (8, 3)]


def test_prune_takes_other_rules_and_leaves_pins(orchestrate, folder):
    orchestrate("checkpoints", "pin", "demo", 3)
    options = ("--keep-last", 1, "--keep-every", 2, "--yes")
    assert orchestrate("checkpoints", "prune", "demo", *options)[0] == 0
    assert points_left(folder) == [(2, 2), (3, 2), (4, 2), (5, 2), (6, 2)]
    assert orchestrate("checkpoints", "unpin", "demo", 3)[0] == 0
    assert folder.list(PINS) == []
    assert orchestrate("checkpoints", "prune", "demo", "--keep-every", 0, "--yes")[0] == 0
    assert points_left(folder) == [(5, 2), (6, 2)]


def test_dry_run_shows_and_deletes_nothing(orchestrate, folder):
    before = folder.list("")
    code, out, _ = orchestrate("checkpoints", "prune", "demo", "--dry-run")
    assert code == 0
    assert checkpoint_prefix(4, 2) in out
    assert "5 checkpoints" in out
    assert folder.list("") == before


def test_prune_without_a_terminal_needs_yes(orchestrate, folder):
    before = folder.list("")
    code, _, err = orchestrate("checkpoints", "prune", "demo")
    assert code == 2
    assert "--yes" in err
    assert folder.list("") == before


def test_prune_again_finds_nothing(orchestrate, folder):
    orchestrate("checkpoints", "prune", "demo", "--yes")
    code, out, _ = orchestrate("checkpoints", "prune", "demo")
    assert code == 0
    assert "kept by a rule" in out


def test_run_that_goes_on_keeps_what_it_is_writing(orchestrate, folder):
    go_on(folder)
    attempt = claim(folder)
    folder.put(shard_key(7, attempt, 0, 1), SHARD)
    assert orchestrate("checkpoints", "prune", "demo", "--yes")[0] == 0
    assert points_left(folder) == [(5, 2), (6, 2), (7, attempt)]
    save(folder, attempt, 7)
    assert read_head(folder)[0].parent == manifest_key(6, 2)


def test_pruned_checkpoints_are_deleted_in_the_ledger_and_the_old_bill_stands(orchestrate, folder):
    def storage():
        return json.loads(orchestrate("cost", "demo", "--json")[1])["parts"]["storage"]

    before = storage()
    orchestrate("checkpoints", "prune", "demo", "--yes")
    state = fold(read_record(folder), LedgerReader(folder).read())
    assert {one.step for one in state.commits if one.deleted_at is None} == {5, 6}
    assert storage() == before > 0  # the run had ended before the deletion


def test_pins_name_a_checkpoint_that_is_there(orchestrate, folder):
    code, _, err = orchestrate("checkpoints", "pin", "demo", 7)
    assert code == 2
    assert "no checkpoint of step 7" in err
    assert folder.list(PINS) == []
    code, _, err = orchestrate("checkpoints", "unpin", "demo", 3)
    assert code == 2
    assert "No checkpoint of step 3 of demo is pinned" in err


def test_what_was_given_up_as_damaged_can_be_unpinned(orchestrate, folder):
    assert orchestrate("checkpoints", "pin", "demo", 6)[0] == 0
    attempt = claim_attempt(folder, claimed_by="c", claimed_at=at(9), world_size=1, offer={})
    rewind(
        folder, run="demo", attempt=attempt.attempt, to=read_manifest(folder, manifest_key(4, 2))
    )
    assert orchestrate("checkpoints", "unpin", "demo", 6)[0] == 0
    assert folder.list(PINS) == []


def test_one_step_or_every_checkpoint_is_verified(orchestrate, folder):
    folder.delete([shard_key(3, 2, 0, 1)])
    folder.put(manifest_key(4, 2), b"{}")
    assert orchestrate("checkpoints", "verify", "demo")[0] == 0
    assert orchestrate("checkpoints", "verify", "demo", "--step", 2)[0] == 0
    code, out, _ = orchestrate("checkpoints", "verify", "demo", "--step", 3, "--json")
    assert code == 1
    problem = {"object": shard_key(3, 2, 0, 1), "what": "is missing"}
    assert json.loads(out)["problems"] == [problem]
    code, out, _ = orchestrate("checkpoints", "verify", "demo", "--all", "--json")
    verdicts = json.loads(out)["checkpoints"]
    assert code == 1
    assert len(verdicts) == 6
    broken = {verdict["manifest"] for verdict in verdicts if verdict["problems"]}
    assert broken == {manifest_key(3, 2), manifest_key(4, 2)}


def test_verify_takes_all_or_one(orchestrate, folder):
    for other in (("--step", 3), ("--against", "demo")):
        assert orchestrate("checkpoints", "verify", "demo", "--all", *other)[0] == 2


# Unfinished uploads, on a real S3 server: parts that no listing shows and that are billed.


@pytest.fixture
def bucket_run(s3_url):
    url = f"{s3_url}/store-{secrets.token_hex(6)}"
    return url, make_run(url)


def begin_upload(folder, key):
    """Upload one part and stop there, as a writer does that is killed."""
    parts = urlsplit(folder.url)
    place = {"Bucket": parts.netloc, "Key": f"{parts.path.strip('/')}/{key}"}
    client = boto3.client("s3")
    upload = client.create_multipart_upload(**place)["UploadId"]
    client.upload_part(**place, UploadId=upload, PartNumber=1, Body=SHARD)


def unfinished(folder):
    parts = urlsplit(folder.url)
    prefix = f"{parts.path.strip('/')}/"
    found = boto3.client("s3").list_multipart_uploads(Bucket=parts.netloc, Prefix=prefix)
    return sorted(one["Key"].removeprefix(prefix) for one in found.get("Uploads", ()))


@pytest.mark.xdist_group("s3")
def test_uploads_of_dead_attempts_are_aborted_and_the_owner_s_are_not(orchestrate, bucket_run):
    url, folder = bucket_run
    go_on(folder)
    dead, live = shard_key(7, 1, 0, 1), shard_key(7, 2, 0, 1)
    for key in (dead, live):
        begin_upload(folder, key)
    arguments = ("checkpoints", "prune", "demo", "--store", url, "--yes", "--json")
    code, out, _ = orchestrate(*arguments)
    assert code == 0
    assert json.loads(out)["aborted_uploads"] == [dead]
    assert unfinished(folder) == [live]


@pytest.mark.xdist_group("s3")
def test_agent_aborts_what_attempts_before_it_left(bucket_run):
    _, folder = bucket_run
    dead, live = shard_key(7, 2, 0, 1), shard_key(7, 3, 0, 1)
    for key in (dead, live):
        begin_upload(folder, key)
    abort_leftovers(folder, 3)
    assert unfinished(folder) == [live]


@pytest.mark.xdist_group("s3")
def test_delete_leaves_no_unfinished_upload(orchestrate, bucket_run):
    url, folder = bucket_run
    begin_upload(folder, shard_key(7, 2, 0, 1))
    code, _, _ = orchestrate("delete", "demo", "--store", url, "--confirm", "demo")
    assert code == 0
    assert folder.list("") == []
    assert unfinished(folder) == []
