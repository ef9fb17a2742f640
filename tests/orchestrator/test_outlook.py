"""The forecast of a run under way, and what came against what was forecast."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from checkpoints.layout import RUN_KEY
from checkpoints.store import open_store
from orchestrator.attempts import EndReason
from orchestrator.cli.wording import render_cost, render_status
from orchestrator.errors import RecordUnreadable
from orchestrator.ledger.fold import fold
from orchestrator.ledger.record import Percentiles, RecordedForecast, read_record
from orchestrator.report import cost_document, status_document
from orchestrator.view import RunView
from tests.orchestrator.histories import Ledger, at, make_record, measured_step

# A second of the wall is a minute of the market: 100 steps of 3 s are 5 h, as was assumed.
FORECAST = RecordedForecast(
    hours=Percentiles(p10=5.5, p50=6.0, p90=None),
    usd=Percentiles(p10=50.0, p50=60.0, p90=90.0),
    work_hours=5.0,
)


def view_of(num_steps, *, seconds_each=3.0, ended=False, forecast=FORECAST):
    ledger = Ledger()
    ledger.launched()
    gone_at = 10 + num_steps * seconds_each
    reason = EndReason.SUCCEEDED
    ledger.launch("l1", 1, attempt=1, until=gone_at if ended else None, reason=reason)
    if ended:
        ledger.ended(gone_at)
    record = make_record().model_copy(update={"num_steps": 100, "forecast": forecast})
    measured = [
        measured_step(1, step + 1, 10 + step * seconds_each, seconds=seconds_each)
        for step in range(num_steps)
    ]
    return RunView(
        state=fold(record, ledger.entries),
        measured=tuple(measured),
        heartbeats=(),
        as_of=at(gone_at),
    )


def test_before_the_first_step_it_is_the_forecast_at_launch():
    view = view_of(0)
    found = status_document(view)["forecast"]
    spent = status_document(view)["usd"]
    assert found["usd"]["p50"] == pytest.approx(60 + spent, abs=1e-3)
    assert found["hours"]["p10"] == pytest.approx(5.5 + 10 / 60, abs=1e-3)


def test_halfway_the_rest_is_half_of_it_and_the_range_half_as_wide():
    view = view_of(50)
    found = status_document(view)["forecast"]
    hours = (10 + 150) / 60
    assert found["hours"] == pytest.approx(
        {"p10": hours + 2.75, "p50": hours + 3.0, "p90": None}, abs=1e-3
    )
    spent = float(view.parts.total)
    assert found["usd"]["p50"] == pytest.approx(spent + 30, abs=1e-3)
    assert found["usd"]["p90"] - found["usd"]["p10"] == pytest.approx(20, abs=1e-2)


def test_slower_steps_than_assumed_take_as_much_longer():
    view = view_of(50, seconds_each=6.0)
    found = status_document(view)["forecast"]
    assert found["hours"]["p50"] == pytest.approx((10 + 300) / 60 + 6.0, abs=1e-3)
    assert found["ends_at"]["p90"] is None
    ends_at = view.record.created_at + timedelta(hours=found["hours"]["p50"] / 60)
    assert found["ends_at"]["p50"][:19] == ends_at.isoformat()[:19]


def test_the_budget_bounds_what_is_forecast():
    found = status_document(view_of(50, seconds_each=30.0))["forecast"]
    assert found["usd"]["p10"] == found["usd"]["p90"] >= 100


def test_status_says_it_in_words():
    assert "/ unfinished h and $" in render_status(view_of(50))


def test_cost_compares_what_came_with_what_was_forecast():
    view = view_of(100, ended=True)
    document = cost_document(view)
    assert document["forecast"]["usd"] == {"p10": 50.0, "p50": 60.0, "p90": 90.0}
    text = render_cost(view)
    assert "Forecast at launch: 5.5 / 6.0 / unfinished h and $50.00 / $60.00 / $90.00" in text
    # 310 s, a minute each; $10 an hour from the second at which the node was ready.
    assert "It took 5.2 h (-14% of p50, below p10)" in text
    assert "$51.33 (-14% of p50, within p10 to p90)" in text
    assert status_document(view)["forecast"] is None


def test_a_run_under_way_is_not_judged():
    text = render_cost(view_of(50))
    assert "So far: 2.7 h and $" in text
    assert "It took" not in text


def test_a_run_without_a_forecast_says_nothing_of_one():
    view = view_of(50, forecast=None)
    assert cost_document(view)["forecast"] is None
    assert status_document(view)["forecast"] is None
    assert "orecast" not in render_cost(view) + render_status(view)


def test_records_of_the_first_version_are_still_read(tmp_path):
    store = open_store(tmp_path.as_uri())
    document = json.loads(make_record().model_dump_json())
    del document["forecast"]
    store.create(RUN_KEY, json.dumps({**document, "schema_version": 1}).encode())
    record = read_record(store)
    assert record is not None
    assert record.forecast is None


def test_records_of_a_later_version_are_not(tmp_path):
    store = open_store(tmp_path.as_uri())
    document = json.loads(make_record().model_dump_json())
    store.create(RUN_KEY, json.dumps({**document, "schema_version": 3}).encode())
    with pytest.raises(RecordUnreadable, match="schema_version 3"):
        read_record(store)
