"""Saves through a proxy that spoils requests to a real S3 server: one commit each, none lost."""

import os
import threading
from contextlib import contextmanager

import pytest
import torch

from checkpoints.errors import CheckpointError, Fenced, StoreError
from checkpoints.fence import read_head
from checkpoints.inspect import read_manifest, verify
from checkpoints.load import load
from checkpoints.store import open_store
from tests.checkpoints.ranks import claimed, run_ranks
from tests.checkpoints.saving import claim, save_step
from tests.fault_record import record_fault
from tests.faulty_proxy import Act, Fault, conditional, faulty_proxy, writes

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("s3")]
NUM_SAVES = 3
# Three parts, of which the last one is smaller.
LARGE = 9 << 20
SHARD, COMPLETE = r"/rank-00000-of", "uploadId="


def multipart(act, **options):
    """Spoil the request that puts an object's parts together."""
    return Fault(
        act=act, when=lambda r: r.method == "POST" and COMPLETE in r.query, times=2, **options
    )


def part(act, **options):
    return Fault(act=act, when=lambda r: "partNumber=" in r.query, times=2, **options)


# Of each: the row of the matrix, what it is called, the faults, and numbers per tensor.
SCENARIOS = [
    ("F5", "503 SlowDown at 30 % of all requests", [Fault(act=Act.REFUSE, rate=0.3)], 8),
    (
        "F5",
        "500 InternalError at 30 % of all requests",
        [Fault(act=Act.REFUSE, rate=0.3, status=500, code="InternalError")],
        8,
    ),
    (
        "F6",
        "the write is done, the answer is 500",
        [
            Fault(act=Act.LOSE_REPLY, when=writes(key), times=2, status=500, code="InternalError")
            for key in (SHARD, r"/attempts/", r"/manifest\.json", r"/HEAD\.json")
        ],
        8,
    ),
    (
        "F6",
        "the write is done, the connection breaks",
        [
            Fault(act=Act.DROP_REPLY, when=writes(key), times=2)
            for key in (SHARD, r"/attempts/", r"/manifest\.json", r"/HEAD\.json")
        ],
        8,
    ),
    ("F6", "the connection is reset within a part", [part(Act.RESET)], LARGE),
    (
        "F6",
        "parts are put together, the answer is lost",
        [multipart(Act.LOSE_REPLY, status=500, code="InternalError")],
        LARGE,
    ),
    ("F6", "200 with an error in place of an object", [multipart(Act.ERROR_IN_200)], LARGE),
    (
        "F7",
        "403 ExpiredToken within an upload",
        [part(Act.REFUSE, status=403, code="ExpiredToken")],
        LARGE,
    ),
    (
        "F8",
        "409 to conditional writes, twelve in a row",
        [
            Fault(
                act=Act.REFUSE,
                when=conditional("."),
                times=12,
                status=409,
                code="ConditionalRequestConflict",
            )
        ],
        8,
    ),
    (
        "F8",
        "412 to writes of HEAD, ten in a row",
        [
            Fault(
                act=Act.REFUSE,
                when=conditional(r"/HEAD\.json"),
                times=10,
                status=412,
                code="PreconditionFailed",
            )
        ],
        8,
    ),
]


@contextmanager
def proxied(monkeypatch, *faults, seed=0):
    """Have s3:// URLs go through a proxy with these faults."""
    straight = os.environ["AWS_ENDPOINT_URL"]
    with faulty_proxy(straight, *faults, seed=seed) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        try:
            yield proxy
        finally:
            monkeypatch.setenv("AWS_ENDPOINT_URL", straight)


def until_it_answers(act, tries=5):
    """As an agent does that is started again."""
    for _ in range(tries - 1):
        try:
            return act()
        except StoreError:
            continue
    return act()


def tensors_at(step, size):
    return {"w": torch.full((size,), step, dtype=torch.int32), "b": torch.arange(5.0) + step}


def try_save(store, attempt, step, size):
    """Save as a rank does: what fails is skipped."""
    try:
        return save_step(store, attempt, step, tensors_at(step, size)).step
    except Fenced:
        raise
    except CheckpointError:
        return None


def history(store):
    """Return the committed steps from HEAD back, each checked byte by byte."""
    steps, key = [], read_head(store)[0].manifest
    while key is not None:
        manifest = read_manifest(store, key)
        assert verify(store, manifest) == []
        steps.append(manifest.step)
        key = manifest.parent
    return steps


@pytest.mark.parametrize(
    ("fault", "what", "faults", "size"), SCENARIOS, ids=[what for _, what, _, _ in SCENARIOS]
)
def test_a_faulty_store_costs_saves_at_most_and_never_a_commit(
    s3_url, monkeypatch, tmp_path, fault, what, faults, size
):
    url = f"{s3_url}/{tmp_path.name}"
    for one in faults:
        one.num_fired = 0
    with proxied(monkeypatch, *faults, seed=len(what)):
        store = open_store(url)
        attempt = until_it_answers(lambda: claim(store))
        told = [try_save(store, attempt, step, size) for step in range(1, NUM_SAVES + 1)]
    injected = sum(one.num_fired for one in faults)

    store = open_store(url)
    steps = history(store)
    assert steps == sorted(set(steps), reverse=True)
    lost = {step for step in told if step} - set(steps)
    assert lost == set()
    # The store has recovered by the last save, or each fault is met by a retry.
    assert told[-1] == steps[0] == NUM_SAVES
    targets = tensors_at(0, size)
    last = read_manifest(store, read_head(store)[0].manifest)
    load(store, last, tensors=targets, local_tensors={})
    expected = tensors_at(NUM_SAVES, size)
    assert all(torch.equal(targets[name], expected[name]) for name in expected)
    assert store.abort_uploads("", lambda key: True) == []
    record_fault(fault, what, injected=injected, committed_steps_lost=len(lost))


def test_of_two_writers_on_a_faulty_store_the_earlier_one_is_fenced(s3_url, monkeypatch, tmp_path):
    url = f"{s3_url}/{tmp_path.name}"
    storm = [
        Fault(act=Act.REFUSE, when=conditional("."), rate=0.2, status=409, code="OperationAborted"),
        Fault(act=Act.DROP_REPLY, when=conditional("."), rate=0.2),
        Fault(act=Act.REFUSE, rate=0.1),
    ]
    fenced_at, claimed = [], threading.Event()
    after_claim = []

    def be_zombie(store, attempt):
        for step in range(1, 100):
            is_late = claimed.is_set()
            try:
                done = try_save(store, attempt, step, 8)
            except Fenced:
                fenced_at.append(step)
                return
            if is_late and done:
                after_claim.append(done)

    with proxied(monkeypatch, *storm, seed=8):
        store = open_store(url)
        first = until_it_answers(lambda: claim(store))
        zombie = threading.Thread(target=be_zombie, args=(store, first))
        zombie.start()
        while (read_head(store)[0]).step < 2:
            pass
        second = until_it_answers(lambda: claim(store))
        claimed.set()
        told = [try_save(store, second, step, 8) for step in range(200, 204)]
        zombie.join(60)
        assert not zombie.is_alive()
    assert fenced_at
    assert after_claim == []
    store = open_store(url)
    steps = history(store)
    assert steps == sorted(set(steps), reverse=True)
    lost = {step for step in told if step} - set(steps)
    assert lost == set()
    record_fault(
        "F8",
        "two writers under 409, lost replies and 503",
        injected=sum(fault.num_fired for fault in storm),
        committed_steps_lost=len(lost),
    )


def test_a_store_that_crawls_or_is_silent_for_one_rank_holds_nobody_up(
    s3_url, monkeypatch, tmp_path
):
    """On one of two nodes; the saves in between and after commit."""
    url = f"{s3_url}/{tmp_path.name}"
    attempt = claimed(open_store(url))
    faults = [
        Fault(act=Act.SLOW, when=writes("step-00000001.*/rank-00001"), bytes_per_s=10_000),
        Fault(act=Act.SILENCE, when=writes("step-00000003.*/rank-00001")),
        Fault(act=Act.REFUSE, when=writes("step-00000005.*/rank-00001")),
    ]
    job = {
        "act": "endure",
        "url": url,
        "world_size": 2,
        "ranks_per_node": 1,
        "attempt": attempt,
        "deadline_s": 6.0,
        "num_saves": 6,
        "ballast": 200_000,  # 20 s at 10 kB/s
    }
    with proxied(monkeypatch, *faults):
        (printed,) = run_ranks(tmp_path, job)
    for lines in printed:
        said = [line.split() for line in lines if line != "flushed"]
        outcomes = [words[0] for words in said if words[0] in ("saved", "raised")]
        assert outcomes == ["raised", "saved"] * 3, lines
        assert all(float(words[1]) < 2 for words in said if words[0] == "blocked"), lines
        trained = [int(words[1]) for words in said if words[0] == "trained"]
        assert min(trained[::2]) > 20, lines
    steps = history(open_store(url))
    lost = {2, 4, 6} - set(steps)
    assert steps == [6, 4, 2]
    record_fault(
        "F5",
        "one rank's store takes 10 kB/s, is silent, answers 503 throughout",
        injected=sum(fault.num_fired for fault in faults),
        committed_steps_lost=len(lost),
    )
