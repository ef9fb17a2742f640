"""The policy that `doctor --iam` prints, on a server that enforces it: enough, and no more."""

from __future__ import annotations

import copy
import secrets

import pytest
import torch
from botocore.exceptions import ClientError

from checkpoints.errors import StoreRefused
from checkpoints.fence import read_head
from checkpoints.inspect import read_manifest, verify
from checkpoints.layout import CHECKPOINTS
from checkpoints.load import load
from checkpoints.messages import Retention
from checkpoints.probe import check_conditional_writes
from checkpoints.store import open_store
from orchestrator.clock import SystemClock
from orchestrator.cloud.local.s3_server import BUCKET
from orchestrator.iam import aws_policy
from orchestrator.ledger.facts import RunLaunched
from orchestrator.ledger.heartbeat import Heartbeat, beat, read_heartbeats
from orchestrator.ledger.journal import Journal, LedgerReader
from orchestrator.ledger.requests import Request, RequestKind, ask, clear_requests, read_requests
from orchestrator.runs import list_runs
from tests.checkpoints.saving import NOW, claim, save_step
from tests.iam_server import iam_server

STORE = f"s3://{BUCKET}/own"
POLICY = aws_policy([STORE])
# SeaweedFS takes aborting for a part of writing; AWS has an action of its own for it.
ACTIONS = {one for statement in POLICY["Statement"] for one in statement["Action"]} - {
    "s3:AbortMultipartUpload"
}
PART = bytes(16 << 20)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with iam_server(tmp_path_factory.mktemp("iam")) as server:
        server.owner.create_bucket(Bucket="other")
        for bucket in ("other", BUCKET):
            for prefix in ("own2", "runs", "own-"):
                server.owner.put_object(Bucket=bucket, Key=f"{prefix}/run/run.json", Body=b"{}")
        server.owner.put_object(Bucket="other", Key="own/run/run.json", Body=b"{}")
        yield server


@pytest.fixture
def as_user(server, monkeypatch):
    """Return what makes this process a new user, who may do what a policy says."""

    def become(policy):
        user = server.add_user(policy)
        for name, value in user.items():
            monkeypatch.setenv(name, value)
        return server.s3(user)

    return become


def live(url: str, *, as_node: bool = False) -> None:
    """Do once all that a run asks of its folder, and people of the store besides."""
    store = open_store(url)
    check_conditional_writes(store)
    attempt = claim(store)
    tensors = {"w": torch.arange(1000.0)}
    retention = Retention(keep_last=1, keep_every=None)
    for step in (1, 2, 3):
        saved = save_step(store, attempt, step, tensors, retention=retention)
    head, _ = read_head(store)
    manifest = read_manifest(store, head.manifest)
    loaded = {"w": torch.zeros_like(tensors["w"])}
    load(store, manifest, tensors=loaded, local_tensors={})
    assert torch.equal(loaded["w"], tensors["w"])
    assert verify(store, manifest) == []
    Journal(store, "agent-1", SystemClock()).note(RunLaunched(host="h"))
    assert len(LedgerReader(store).read()) == 1
    beat(store, Heartbeat(writer="agent-1", at=NOW, host="h", pid=1))
    assert read_heartbeats(store)
    ask(store, Request(kind=RequestKind.STOP, at=NOW, by="me"))
    assert read_requests(store)
    clear_requests(store)
    assert saved.deleted
    store.put("inputs/large", iter([PART, b"end"]))
    store.abort_uploads(CHECKPOINTS, lambda key: True)
    store.put("run.json", b"{}")
    if not as_node:
        assert [one.run for one in list_runs(STORE)]
    store.delete([entry.key for entry in store.list("")])
    assert store.list("") == []


def without(action: str):
    policy = copy.deepcopy(POLICY)
    for statement in policy["Statement"]:
        statement["Action"] = [one for one in statement["Action"] if one != action]
    policy["Statement"] = [one for one in policy["Statement"] if one["Action"]]
    return policy


@pytest.mark.parametrize("missing", [None, *sorted(ACTIONS)])
def test_a_run_needs_each_action_of_its_policy_and_nothing_else(as_user, missing):
    as_user(POLICY if missing is None else without(missing))
    url = f"{STORE}/run-{secrets.token_hex(4)}"
    if missing is None:
        live(url)
        return
    with pytest.raises(StoreRefused):
        live(url)


def test_a_node_needs_no_folder_but_its_run_s(as_user, server):
    server.owner.put_object(Bucket=BUCKET, Key="own/another/run.json", Body=b"{}")
    as_user(aws_policy([f"{STORE}/mine"]))
    live(f"{STORE}/mine", as_node=True)
    another = open_store(f"{STORE}/another")
    for act in (
        lambda: another.get("run.json"),
        lambda: another.put("run.json", b"mine"),
        lambda: another.list(""),
        lambda: another.delete(["run.json"]),
        lambda: list_runs(STORE),
    ):
        with pytest.raises(StoreRefused):
            act()
    found = server.owner.get_object(Bucket=BUCKET, Key="own/another/run.json")["Body"].read()
    assert found == b"{}"
    server.owner.delete_object(Bucket=BUCKET, Key="own/another/run.json")


def test_nothing_outside_of_the_stores_folder_is_allowed(as_user, server):
    s3 = as_user(POLICY)
    refused = [
        lambda: s3.delete_bucket(Bucket=BUCKET),
        lambda: s3.delete_bucket(Bucket="other"),
        lambda: s3.create_bucket(Bucket="mine"),
        lambda: s3.list_objects_v2(Bucket=BUCKET),
        lambda: s3.list_objects_v2(Bucket=BUCKET, Prefix=""),
        lambda: s3.list_objects_v2(Bucket=BUCKET, Prefix="own"),
        lambda: s3.list_objects_v2(Bucket=BUCKET, Prefix="own2/"),
        lambda: s3.list_objects_v2(Bucket="other", Prefix="own/"),
        lambda: s3.list_multipart_uploads(Bucket="other"),
        lambda: s3.put_bucket_policy(Bucket=BUCKET, Policy="{}"),
        lambda: s3.copy_object(
            Bucket=BUCKET, Key="own/stolen", CopySource=f"{BUCKET}/runs/run/run.json"
        ),
    ]
    for bucket, key in [
        (BUCKET, "own2/run/run.json"),
        (BUCKET, "own-/run/run.json"),
        (BUCKET, "runs/run/run.json"),
        (BUCKET, "own/../runs/run/run.json"),
        ("other", "own/run/run.json"),
    ]:
        where = {"Bucket": bucket, "Key": key}
        refused += [
            lambda where=where: s3.get_object(**where),
            lambda where=where: s3.put_object(**where, Body=b"mine"),
            lambda where=where: s3.delete_object(**where),
            lambda where=where: s3.create_multipart_upload(**where),
        ]
    for act in refused:
        with pytest.raises(ClientError) as caught:
            act()
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 403)
    kept = server.owner.list_objects_v2(Bucket="other")["Contents"]
    assert {one["Key"].partition("/")[0] for one in kept} == {"own", "own-", "own2", "runs"}


@pytest.mark.parametrize("place", [f"s3://{BUCKET}/own2", f"s3://{BUCKET}", "s3://other/own"])
def test_our_own_stores_say_that_they_are_refused(as_user, place):
    as_user(POLICY)
    store = open_store(place)
    for act in (
        lambda: store.get("run/run.json"),
        lambda: store.put("run/new", b"x"),
        lambda: store.create("run/new", b"x"),
        lambda: store.list("run/"),
        lambda: store.delete(["run/run.json"]),
        lambda: store.list_folders(),
    ):
        with pytest.raises(StoreRefused):
            act()


def test_a_user_without_a_policy_may_do_nothing(as_user):
    as_user(None)
    with pytest.raises(StoreRefused):
        live(f"{STORE}/run")
