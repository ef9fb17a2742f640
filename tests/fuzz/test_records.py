"""Objects of the run folder: what others may have written there is read as it stands, or named."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable

from hypothesis import example, given
from hypothesis import strategies as st

from checkpoints.checksums import crc64
from checkpoints.errors import Damaged, RecordInvalid, StoreError
from checkpoints.fence import claim_attempt, read_head
from checkpoints.inspect import verify
from checkpoints.layout import (
    HEAD_KEY,
    RUN_KEY,
    event_key,
    heartbeat_key,
    request_key,
    steps_key,
)
from checkpoints.manifest import Claim, Head, Manifest
from checkpoints.store import ObjectStore, open_store
from orchestrator.errors import RecordUnreadable
from orchestrator.ledger.facts import (
    Entry,
    parse_entries,
)
from orchestrator.ledger.heartbeat import Heartbeat, read_heartbeats
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.measurements import MeasurementReader
from orchestrator.ledger.record import RunRecord, read_record
from orchestrator.ledger.requests import Request, RequestKind, read_requests
from orchestrator.report import cost_document, status_document
from orchestrator.view import RunView, RunViewer
from tests.checkpoints.saving import NOW
from tests.checkpoints.test_manifest import small_manifest
from tests.fuzz.mutation import RAW, foreseen, fuzzed, json_texts
from tests.orchestrator.histories import Ledger, at, make_record
from train.spool import Phase, PhaseName, Step


def ledger() -> Ledger:
    history = Ledger()
    history.launched()
    history.launch("one", 0, attempt=1)
    return history


ENTRIES = [json.loads(one.model_dump_json()) for one in ledger().entries]
STEP = Step(
    step=1, at=NOW, started_at=NOW, seconds=1, loss=2, grad_norm=1, learning_rate=1e-5,
    num_tokens=10, num_trained_tokens=5, batch=1, data_seconds=0.1,
)  # fmt: skip
PHASE = Phase(at=NOW, name=PhaseName.STARTUP, started_at=NOW, seconds=1)
MEASUREMENTS = [json.loads(one.model_dump_json()) for one in (STEP, PHASE)]
HEAD = json.loads(Head(attempt=3, step=5, manifest=small_manifest().key).to_json())
CLAIM = json.loads(
    Claim(
        attempt=1,
        step=0,
        parent=None,
        claimed_by="a",
        claimed_at=NOW,
        world_size=1,
        offer={"a": "b"},
    ).to_json()
)
MANIFEST = json.loads(small_manifest().model_dump_json())
RECORD = json.loads(make_record().model_dump_json())
BEAT = json.loads(Heartbeat(writer="w", at=NOW, host="h", pid=1).model_dump_json())
ASKED = json.loads(Request(kind=RequestKind.STOP, at=NOW, by="me").model_dump_json())


def folder() -> ObjectStore:
    return open_store(f"memory://fuzz-{secrets.token_hex(8)}")


def read_or_named(read: Callable[[], object], *errors: type[Exception]) -> object:
    """Return what is read, None where it is refused with one of these errors."""
    try:
        return read()
    except errors as error:
        foreseen(error)
        return None


@fuzzed
@given(text=st.sampled_from(ENTRIES).flatmap(json_texts))
@example(text=json.dumps({**ENTRIES[0], "at": "0001-01-01T00:00:00+14:00"}).encode())
@example(text=b'{"schema_version": ' + b"9" * 5000 + b"}")
@example(text=RAW[6].encode())
def test_a_changed_fact_is_read_as_it_stands_or_named(text):
    entries = read_or_named(lambda: parse_entries(text, "events/a/0.jsonl"), RecordUnreadable)
    for entry in entries or []:
        assert Entry.model_validate_json(entry.model_dump_json()) == entry


@fuzzed
@given(text=st.sampled_from(MEASUREMENTS).flatmap(json_texts))
def test_a_changed_measurement_is_read_as_it_stands_or_named(text):
    store = folder()
    store.put(steps_key(1, 0), text)
    for measured in read_or_named(MeasurementReader(store).read, RecordUnreadable) or []:
        again = type(measured.record).model_validate_json(measured.record.model_dump_json())
        assert again == measured.record


@fuzzed
@given(
    name=st.sampled_from(["README", "x/00000000.jsonl", "000001/sub/1.jsonl", "000001/x", "-1/0"])
)
def test_what_nobody_knows_in_the_folder_changes_nothing(name):
    store = folder()
    store.put(steps_key(1, 0), STEP.model_dump_json().encode())
    for entry in ledger().entries:
        store.put(event_key(entry.writer, entry.number), entry.model_dump_json().encode())
    before = LedgerReader(store).read(), list(MeasurementReader(store).read())
    for place in ("steps", "logs", "attempts", "heartbeats", "checkpoints", "pins", "requests"):
        store.put(f"{place}/{name}", b"whatever")
    assert (LedgerReader(store).read(), list(MeasurementReader(store).read())) == before


@fuzzed
@given(text=json_texts(HEAD))
def test_a_changed_head_is_read_as_it_stands_or_refused(text):
    store = folder()
    store.put(HEAD_KEY, text)
    found = read_or_named(lambda: read_head(store), RecordInvalid)
    if found is not None:
        assert Head.from_json(found[0].to_json()) == found[0]
        claim = claim_attempt(store, claimed_by="a", claimed_at=NOW, world_size=1, offer={})
        assert claim.attempt == found[0].attempt + 1


@fuzzed
@given(text=json_texts(CLAIM))
def test_a_changed_claim_is_read_as_it_stands_or_refused(text):
    claim = read_or_named(lambda: Claim.from_json(text), RecordInvalid)
    assert claim is None or Claim.from_json(claim.to_json()) == claim


@fuzzed
@given(text=json_texts(MANIFEST))
def test_a_forged_manifest_is_read_as_it_stands_or_refused_and_reads_nothing_elsewhere(text):
    body = text.rstrip(b"\n")[:-1]
    forged = body + b',"crc64":"%016x"}\n' % crc64(body)
    manifest = read_or_named(lambda: Manifest.from_json(forged), RecordInvalid)
    if not isinstance(manifest, Manifest):
        return
    assert Manifest.from_json(manifest.to_json()) == manifest
    for entry in manifest.objects:
        assert ".." not in entry.key.split("/")
        assert not entry.key.startswith("/")
    if manifest.store is None or not manifest.store.startswith("s3:"):
        verify_errors = (Damaged, RecordInvalid, StoreError)
        read_or_named(lambda: verify(folder(), manifest), *verify_errors)


@fuzzed
@given(text=json_texts(RECORD))
def test_a_changed_record_is_read_as_it_stands_or_named(text):
    store = folder()
    store.put(RUN_KEY, text)
    record = read_or_named(lambda: read_record(store), RecordUnreadable)
    assert record is None or RunRecord.model_validate_json(record.model_dump_json()) == record


@fuzzed
@given(beat=json_texts(BEAT), asked=json_texts(ASKED))
def test_what_overwrites_itself_proves_nothing_where_it_is_damaged(beat, asked):
    store = folder()
    store.put(heartbeat_key("w"), beat)
    store.put(request_key("stop"), asked)
    for found in (*read_heartbeats(store), *read_requests(store)):
        assert type(found).model_validate_json(found.model_dump_json()) == found


@fuzzed
@given(text=st.sampled_from(ENTRIES).flatmap(json_texts))
def test_a_run_with_a_changed_fact_is_reported_or_named(text):
    store = folder()
    store.put(RUN_KEY, json.dumps(RECORD).encode())
    for entry in ledger().entries:
        store.put(event_key(entry.writer, entry.number), entry.model_dump_json().encode())
    store.put(event_key("another", 0), text)
    view = read_or_named(lambda: RunViewer(store).look(at(60)), RecordUnreadable)
    if isinstance(view, RunView):
        json.dumps([status_document(view), cost_document(view)])
