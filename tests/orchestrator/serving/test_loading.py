"""A replica that is told to go before it serves: a real process, and what it wrote."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest

from checkpoints.store import open_store
from orchestrator.ledger.facts import ReplicaEndReason
from orchestrator.ledger.fold import fold
from orchestrator.ledger.journal import LedgerReader
from tests.orchestrator.histories import make_record

DEADLINE_AT = datetime.now(timezone.utc) + timedelta(minutes=2)
LOADING = """
import signal, sys, threading
from datetime import datetime
from checkpoints.store import open_store
from orchestrator.clock import SystemClock
from orchestrator.ledger.facts import QuotedOffer
from orchestrator.serving.loading import gone_when_told
from orchestrator.serving.replica_facts import ReplicaFacts
from tests.orchestrator.histories import make_offer

store, told, stop, clock = open_store(sys.argv[1]), [], threading.Event(), SystemClock()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
facts = ReplicaFacts([(store, 1)], "chat-1", clock)
facts.started("chat", QuotedOffer.quote(make_offer()), 1, clock.now())
with gone_when_told(lambda: told[0] if told else None, facts, stop):
    print("loading", flush=True)
    told += [datetime.fromisoformat(line.strip()) for line in sys.stdin.readline().splitlines()]
    threading.Event().wait()
"""


@pytest.mark.parametrize("is_notice", [True, False])
def test_one_that_loads_goes_at_once_with_its_facts_written(is_notice, tmp_path):
    url = f"file://{tmp_path}"
    with subprocess.Popen(
        [sys.executable, "-c", LOADING, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        if is_notice:
            assert process.stdin is not None
            process.stdin.write(f"{DEADLINE_AT.isoformat()}\n")
            process.stdin.flush()
        else:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 1
    (replica,) = fold(make_record(), LedgerReader(open_store(url)).read()).replicas
    assert replica.leaves_at == (DEADLINE_AT if is_notice else None)
    assert replica.ended_at is not None
    assert replica.reason is ReplicaEndReason.STOPPED
