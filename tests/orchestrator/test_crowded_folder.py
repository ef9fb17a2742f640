"""A run folder with more facts than one listing names, strangers between them, and facts twice."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from checkpoints.layout import event_key
from checkpoints.store import open_store
from orchestrator.cost import bill
from orchestrator.ledger.fold import fold
from orchestrator.ledger.journal import LedgerReader
from tests.fault_record import record_fault
from tests.faulty_proxy import Act, Fault, faulty_proxy
from tests.orchestrator.histories import Ledger, at, make_record

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("s3")]
# S3 names so many keys per answer at most.
PAGE = 1000
NUM_COMMITS = PAGE + 100
STRANGERS = ("README", "events/notes.txt", "events/x/1.jsonl", "events/x/00000000.jsonl.tmp")


def test_pages_strangers_and_facts_told_twice_and_out_of_order_change_nothing(
    s3_url, monkeypatch, tmp_path
):
    ledger, record = Ledger(), make_record()
    ledger.launched()
    ledger.launch("one", 1, until=5000, attempt=1)
    for step in range(1, NUM_COMMITS + 1):
        ledger.commit(2 + step, attempt=1, step=step)
    ledger.ended(5001)
    entries = ledger.entries
    expected = fold(record, entries)

    dice, objects = random.Random(22), {}
    for number, entry in enumerate(dice.sample(entries, len(entries))):
        objects[event_key("one-by-one", number)] = [entry]
    twice = dice.sample(entries, len(entries) // 2)
    objects[event_key("again", 0)] = twice
    store = open_store(f"{s3_url}/{tmp_path.name}")
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda key: store.put(key, lines(objects[key])), objects))
        list(threads.map(lambda key: store.put(key, b"mine"), STRANGERS))

    # The first answer to a question for a further page is lost as well.
    paging = Fault(act=Act.REFUSE, when=lambda r: "continuation-token" in r.query, times=1)
    with faulty_proxy(os.environ["AWS_ENDPOINT_URL"], paging) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        read = LedgerReader(open_store(store.url)).read()
    found = fold(record, read)
    assert found == expected
    lost = {one.step for one in expected.commits} - {one.step for one in found.commits}
    unaccounted = abs(bill(found, at(6000)).total - bill(expected, at(6000)).total)
    record_fault(
        "F22",
        "two pages of facts, half of them twice, out of order, and strangers' objects",
        injected=len(twice) + len(STRANGERS) + paging.num_fired,
        committed_steps_lost=len(lost),
        usd_unaccounted=unaccounted,
    )


def lines(entries):
    return b"\n".join(entry.model_dump_json().encode() for entry in entries)
