"""Files that people bring: traces, catalogs, bills, conversations, deltas, questions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from checkpoints.delta_record import BaseTensor, DeltaRecord, DeltaTensor
from checkpoints.delta_record import read_record as read_delta_record
from checkpoints.errors import RecordInvalid
from checkpoints.tensor_files import TensorSpec, make_header, read_file
from orchestrator.billing.export_file import read_exports
from orchestrator.catalog import catalog_folder, read_catalog
from orchestrator.errors import InputError
from orchestrator.evaluation.questions import read_questions
from orchestrator.simulate.market import make_market
from orchestrator.simulate.traces import read_traces
from tests.fuzz.mutation import RAW, damaged, foreseen, fuzzed, json_texts
from tests.orchestrator.billing.test_export_file import CUR, RUN, cur_row, google_line, write_csv
from tests.orchestrator.simulate.markets import zone
from tests.orchestrator.test_catalog import HEADS, ROWS
from train.data.conversations import read_conversations
from train.errors import DataInvalid

TRACE = json.loads(zone("us-east-1a", "0121").model_dump_json())
PUBLISHED = {
    "metadata": {
        "gap_seconds": 600,
        "zone": "us-central1-a",
        "price_info": {"price": 18.9, "on_demand_price": 82.5, "machine_type": "a3-highgpu-8g"},
    },
    "data": [0, 1, 1, 0],
    "prices": [2, 2, 3, 3],
}
TALK = {
    "id": "1",
    "conversations": [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
    ],
}
BILL = google_line("N1 Core running", 3, credits=[-1])
QUESTION = {"question_id": 1, "category": "math", "turns": ["1+1?"], "reference": ["2"]}
TENSOR = DeltaTensor(
    dtype="F32", shape=(2, 2), sha256="0" * 64, base=BaseTensor(shape=(2, 2), sha256="1" * 64)
)
DELTA = json.loads(DeltaRecord(base="llama", tensors={"w": TENSOR}).model_dump_json())
WEIGHTS = make_header({"w": TensorSpec(dtype="F32", shape=(2, 2))}) + bytes(16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def read_or_refused(read: Callable[[], object], error: type[Exception]) -> object:
    try:
        return read()
    except error as refused:
        foreseen(refused)
        return None


@fuzzed
@given(text=json_texts(TRACE) | json_texts(PUBLISHED))
@example(text=json.dumps({**TRACE, "accelerators": "V100:" + "9" * 5000}).encode())
def test_a_changed_trace_is_a_market_or_refused(folder, text):
    (folder / "traces").mkdir(exist_ok=True)
    (folder / "traces" / "us-east-1a_v100_1.json").write_bytes(text)
    traces = read_or_refused(lambda: read_traces(folder / "traces"), InputError)
    if isinstance(traces, list):
        make_market(traces, 1)
        assert all(math.isfinite(one.hours) and one.hours > 0 for one in traces)


@fuzzed
@given(cloud=st.sampled_from(sorted(HEADS)), data=st.data())
def test_a_damaged_catalog_gives_prices_that_are_prices(folder, cloud, data):
    text = "\n".join([HEADS[cloud], *ROWS[cloud]]) + "\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKY_RUNTIME_DIR", str(folder))
        file = catalog_folder() / cloud / "vms.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.draw(damaged(text.encode())))
        table = read_catalog("A100-80GB:8", [cloud])
    for offer in table.offers if table else ():
        assert offer.region
        assert Decimal(0) < offer.usd_per_hour
        assert offer.on_demand_usd_per_hour.is_finite()


@fuzzed
@given(
    text=json_texts(BILL)
    | damaged(write_csv(CUR, [cur_row("BoxUsage:p4d.24xlarge", "8"), cur_row("x", "1")]))
)
@example(text=json.dumps(BILL).replace("3", "9" * 5000, 1).encode())
def test_a_changed_bill_adds_up_or_is_refused(folder, text):
    path = folder / "bill"
    path.write_bytes(text)
    for tally in read_or_refused(lambda: read_exports([str(path)], RUN), InputError) or []:
        assert all(usd.is_finite() for usd in tally.usd.values())


@fuzzed
@given(text=json_texts(TALK) | json_texts([TALK, TALK]))
@example(text=b'{"id": ' + b"9" * 5000 + b"}")
@example(text=b"[" + b"9" * 5000 + b"]")
@example(text=RAW[6].encode())
@example(text=RAW[7].encode())
def test_changed_conversations_are_what_can_be_trained_on_or_refused(folder, text):
    path = folder / "talks.json"
    path.write_bytes(text)
    found = read_or_refused(lambda: read_conversations(path), DataInvalid)
    for conversation in found[0] if isinstance(found, tuple) else ():
        assert all(pair.user.strip() and pair.assistant.strip() for pair in conversation.pairs)
        json.dumps(conversation.id)
        for pair in conversation.pairs:
            assert (pair.user + pair.assistant).encode()


@fuzzed
@given(text=json_texts(QUESTION))
def test_changed_questions_can_be_asked_or_are_refused(folder, text):
    path = folder / "questions.jsonl"
    path.write_bytes(text)
    for question in read_or_refused(lambda: read_questions(path), InputError) or ():
        assert all(turn.strip() for turn in question.turns)


@fuzzed
@given(text=json_texts(DELTA))
def test_a_changed_delta_record_is_read_as_it_stands_or_refused(folder, text):
    (folder / "delta.json").write_bytes(text)
    record = read_or_refused(lambda: read_delta_record(folder), RecordInvalid)
    assert record is None or DeltaRecord.model_validate_json(record.model_dump_json()) == record


@fuzzed
@given(text=damaged(WEIGHTS) | st.sampled_from(RAW).map(str.encode))
@example(text=(2400).to_bytes(8, "little") + RAW[6].encode())
def test_damaged_weights_are_as_long_as_they_say_or_refused(folder, text):
    path = folder / "model.safetensors"
    path.write_bytes(text)
    for tensor in (read_or_refused(lambda: read_file(path), RecordInvalid) or {}).values():
        assert sum(len(block) for block in tensor.blocks()) == tensor.spec.num_bytes
