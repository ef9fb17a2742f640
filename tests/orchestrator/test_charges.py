"""What one launch is charged: prices that change, and what clouds waive."""

from __future__ import annotations

from decimal import Decimal

import pytest

from orchestrator.attempts import EndReason
from orchestrator.charges import charge, node_rate
from orchestrator.cost import bill
from orchestrator.ledger.facts import (
    LaunchEnded,
    NoticeReceived,
    PriceSampled,
    TerminatedBy,
)
from orchestrator.ledger.fold import fold
from orchestrator.offers import Market
from tests.orchestrator.histories import Ledger, at, make_controller, make_offer, make_record

REAL = make_record(infra=["aws", "gcp"], local=None).model_copy(update={"simulated": False})
HOUR = 3600


def charged(ledger: Ledger, until: float, record=REAL):
    state = fold(record, ledger.entries)
    return charge(state, state.launches[0], at(until))


def launched(
    up: float,
    gone: float,
    reason=EndReason.PREEMPTED,
    notice: float | None = 0,
    by=TerminatedBy.CLOUD,
    was_watched: bool = True,
    **offer,
) -> Ledger:
    """Return a launch that was up from `up` to `gone`.

    Told before that it leaves `notice` seconds after that; None: it was told nothing.
    """
    ledger = Ledger()
    ledger.launch("one", up - 1, attempt=1, offer=make_offer(**offer))
    if notice is not None:
        told = NoticeReceived(attempt=1, deadline_at=at(gone + notice))
        ledger.add(gone - 1, told, writer="agent-1")
    end = LaunchEnded(launch="one", reason=reason, terminated_by=by, was_watched=was_watched)
    ledger.add(gone, end)
    return ledger


@pytest.mark.parametrize(
    ("minutes", "changes", "is_free"),
    [
        (59, {}, True),
        (60, {}, False),  # from its first hour on, AWS charges the seconds
        (59, {"reason": EndReason.NODE_LOST}, False),  # it need not have been AWS
        (59, {"notice": None}, False),  # its agent left for a reason of its own
        (59, {"by": TerminatedBy.US}, False),
        (59, {"was_watched": False}, False),  # we may have ended it, as after a false notice
        (59, {"notice": -170}, True),
        (59, {"notice": -190}, False),  # it was not seen to go: autodown may have ended it
        (59, {"reason": EndReason.STOPPED}, False),
        (59, {"market": Market.ON_DEMAND}, False),
        (59, {"cloud": "gcp"}, False),
        (0.9, {"cloud": "gcp"}, True),
        (59, {"cloud": "azure"}, False),
    ],
)
def test_only_spot_that_the_cloud_took_early_is_free(minutes, changes, is_free):
    found = charged(launched(60, 60 + minutes * 60, **changes), 10 * HOUR)
    assert (found.usd == 0) is is_free
    assert (found.waived_usd > 0) is is_free


def test_nodes_that_left_before_the_cloud_took_them_are_charged():
    """SkyPilot terminated them, and what the user terminates is charged by the second."""
    assert charged(launched(60, 600), HOUR).usd == 0
    assert charged(launched(60, 600, notice=100), HOUR).usd == Decimal("1.5")


def test_of_a_gang_only_the_node_that_was_taken_is_free():
    """The others are terminated with it, by SkyPilot."""
    ledger = launched(60, 60 + 1800)
    started = ledger.entries[0]
    gang = started.body.model_copy(update={"num_nodes": 4})
    ledger.entries[0] = started.model_copy(update={"body": gang})
    found = charged(ledger, HOUR)
    assert (found.usd, found.waived_usd) == (15, 5)


def test_simulated_nodes_are_charged_for_every_second():
    assert charged(launched(60, 120), HOUR, make_record()).usd == Decimal(10)


def test_less_than_a_minute_is_charged_as_one():
    stopped = launched(60, 75, EndReason.STOPPED)
    assert charged(stopped, HOUR).usd == Decimal("0.166667")
    assert charged(launched(60, 75, EndReason.STOPPED, cloud="azure"), HOUR).usd == Decimal(
        "0.041667"
    )


def test_each_price_holds_from_when_it_was_asked_until_the_next():
    ledger = launched(0, 4 * HOUR, EndReason.STOPPED)
    ledger.add(2 * HOUR, PriceSampled(launch="one", usd_per_hour=Decimal(7), source="a test"))
    ledger.add(HOUR, PriceSampled(launch="one", usd_per_hour=Decimal(12), source="a test"))
    found = charged(ledger, 9 * HOUR)
    assert found.usd == 10 + 12 + 7 + 7
    assert found.sampled_usd == 12 + 7 + 7
    assert found.hours == 4
    state = fold(REAL, ledger.entries)
    assert node_rate(state.launches[0]) == 7


def test_prices_outside_of_its_life_charge_nothing():
    """The sampler's clock may be an hour off either way."""
    ledger = launched(HOUR, 2 * HOUR, EndReason.STOPPED)
    for second, usd in ((0, 100), (3 * HOUR, 1000)):
        sampled = PriceSampled(launch="one", usd_per_hour=Decimal(usd), source="a test")
        ledger.add(second, sampled, writer="controller-2")
    assert charged(ledger, 9 * HOUR).usd == 100


def test_a_controller_costs_from_the_launch_to_ten_minutes_after_the_end():
    ledger = Ledger()
    ledger.launched()
    seen = make_controller(0, "0.6")
    ledger.add(300, seen)
    assert bill(fold(REAL, ledger.entries), at(HOUR)).controller == Decimal("0.6")
    ledger.ended(2 * HOUR)
    assert bill(fold(REAL, ledger.entries), at(9 * HOUR)).controller == Decimal("1.3")
    unknown = seen.model_copy(update={"usd_per_hour": None, "launched_at": at(1)})
    ledger.add(400, unknown)
    assert bill(fold(REAL, ledger.entries), at(9 * HOUR)).controller == Decimal("1.3")


def test_a_clock_that_is_minutes_off_makes_no_charge_negative():
    ledger = launched(600, 60)  # gone before it came up, by the agent's clock
    found = charged(ledger, HOUR)
    assert found.usd >= 0
    assert found.hours == 0
