"""What a short measurement of a store tells."""

from __future__ import annotations

from checkpoints.store import open_store
from orchestrator.agent.speed import Speed, checkpoint_bytes, measure, warning
from orchestrator.ledger.fold import fold
from tests.orchestrator.histories import Ledger, make_record


def state(base: str = "/models/llama-7b", **changes: object):
    ledger = Ledger()
    ledger.launched()
    return fold(make_record(model={"base": base}, **changes), ledger.entries)


def test_measuring_leaves_nothing_behind(tmp_path):
    store = open_store((tmp_path / "store").as_uri())
    speed = measure(store)
    assert speed.up > 0
    assert speed.down > 0
    assert store.list("") == []


def test_first_checkpoint_s_size_is_told_by_the_model_s_name():
    assert checkpoint_bytes(state()) == 84 * 10**9
    assert checkpoint_bytes(state("/models/mine")) is None


def test_checkpoint_that_outlasts_a_notice_is_warned_of():
    slow, fast = Speed(up=0.5e9, down=1e9), Speed(up=1e9, down=1e9)
    found = warning(slow, state(), "aws")
    assert found is not None
    assert "168 s" in found
    assert warning(fast, state(), "aws") is None  # 84 s of 120
    assert warning(fast, state(), "gcp") is not None  # 84 s of 30
