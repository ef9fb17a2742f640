"""What the agent decides while it watches a trainer."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from orchestrator.agent import watch as watch_module
from orchestrator.agent.config import AgentConfig
from orchestrator.agent.gang import News
from orchestrator.agent.metadata import open_notices
from orchestrator.agent.notice import NoticeWatch
from orchestrator.agent.watch import Watch
from orchestrator.attempts import EndReason
from orchestrator.clock import SystemClock
from orchestrator.ledger.facts import QuotedOffer
from tests.orchestrator.histories import make_offer
from tests.orchestrator.test_metadata import announce, service  # noqa: F401  # a fixture
from train.spool import Outcome, OutcomeKind, read_notice, write_outcome


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_a_notice_is_decided_upon_within_seconds(service, cloud, tmp_path):  # noqa: F811
    """The trainer here does not leave by itself: what counts is when the agent has decided."""
    target, noticed = tmp_path / "notice.json", []
    watch = make_watch(tmp_path, open_notices(cloud), cloud, noticed.append)
    trainer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    serving = threading.Thread(target=watch.serve, args=(trainer,))
    serving.start()
    time.sleep(0.3)  # in the middle of two looks
    assert watch.leaving is None
    announced_at = time.monotonic()
    announce(service, cloud)
    while watch.leaving is None and time.monotonic() - announced_at < 5:
        time.sleep(0.02)
    trainer.kill()
    serving.join()
    assert watch.leaving is EndReason.PREEMPTED
    assert len(noticed) == 1
    assert read_notice(target) == noticed[0]


def test_a_torchrun_that_stands_still_when_its_ranks_have_ended_is_not_waited_for(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(watch_module, "_LINGER_SECONDS", 0.5)
    watch = make_watch(tmp_path, lambda: None, "aws", lambda notice: None)
    trainer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    trainer.send_signal(signal.SIGSTOP)
    serving = threading.Thread(target=watch.serve, args=(trainer,))
    serving.start()
    time.sleep(2)
    assert serving.is_alive()  # a rank has yet to say how it ended
    said = Outcome(outcome=OutcomeKind.DONE, step=10)
    write_outcome(tmp_path, 0, said)
    serving.join(timeout=10)
    assert trainer.poll() == -signal.SIGKILL
    assert watch.outcomes() == (said,)
    assert (watch.leaving, watch.is_hung) == (None, False)


def make_watch(tmp_path, notices, cloud, noticed) -> Watch:
    config = AgentConfig(
        store="memory://x",
        launch="one",
        offer=QuotedOffer.quote(make_offer(cloud=cloud)),
        ranks=1,
        scratch=tmp_path,
    )
    return Watch(
        config,
        SystemClock(),
        courier=SimpleNamespace(
            spool_dir=tmp_path, wants_upload=False, pump=lambda: (), upload=lambda: None
        ),
        facts=SimpleNamespace(noticed=noticed),
        notices=NoticeWatch(notices, tmp_path / "notice.json", config.poll_seconds),
        gang=SimpleNamespace(news=lambda: News.NONE),
        guards=None,
        num_steps=10,
    )
