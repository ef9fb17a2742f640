"""The simulated market and the scripted preemptions."""

from __future__ import annotations

from datetime import timedelta

import pytest

from checkpoints.layout import manifest_key, shard_key
from checkpoints.places import only
from checkpoints.store import open_store
from orchestrator.attempts import EndReason
from orchestrator.cloud.local.market import SyntheticMarket
from orchestrator.cloud.local.preemptions import (
    MarketPreemptions,
    ScriptedPreemptions,
    find_unfinished_checkpoint,
)
from orchestrator.ledger.facts import LaunchEnded, LaunchStarted, QuotedOffer, TerminatedBy
from orchestrator.ledger.fold import fold
from orchestrator.offers import Market
from orchestrator.spec import ScriptedPreemption
from tests.orchestrator.histories import START, Ledger, at, make_offer, make_record

RECORD = make_record()
OFFER = make_offer()
WEEK = [START + timedelta(minutes=10 * tick) for tick in range(6 * 24 * 7)]


def availability(seed: int, zone: str) -> list[bool]:
    market = SyntheticMarket(seed, START)
    return [market.has_capacity(make_offer(zone=zone), moment) for moment in WEEK]


def test_market_is_the_same_for_the_same_seed_and_differs_by_zone_and_seed():
    assert availability(1, "a") == availability(1, "a")
    assert len({tuple(availability(seed, zone)) for seed in (1, 2) for zone in "ab"}) == 4


def test_market_has_both_capacity_and_losses():
    shares = [sum(availability(seed, "a")) / len(WEEK) for seed in range(20)]
    assert 0.5 < sum(shares) / len(shares) < 0.95


def test_young_nodes_are_lost_more_often_than_old_ones():
    lengths = []
    for seed in range(40):
        market = SyntheticMarket(seed, START)
        spells = {market.spell(OFFER, moment).start: market.spell(OFFER, moment) for moment in WEEK}
        lengths += [one.end - one.start for one in spells.values() if one.is_up]
    hour = timedelta(hours=1)
    young = sum(length < hour for length in lengths) / len(lengths)
    reached = [length for length in lengths if length >= hour]
    later = sum(length < 2 * hour for length in reached) / len(reached)
    assert young > 1.2 * later


def test_on_demand_capacity_is_always_there():
    market = SyntheticMarket(1, START)
    on_demand = make_offer(market=Market.ON_DEMAND)
    assert all(market.has_capacity(on_demand, moment) for moment in WEEK)


def test_market_takes_a_node_back_when_its_spell_ends():
    market = SyntheticMarket(3, START)
    source = MarketPreemptions(market)
    ledger = Ledger()
    ledger.launch("one", 0, attempt=1)
    state = fold(RECORD, ledger.entries)
    end = next(moment for moment in WEEK if not market.has_capacity(OFFER, moment))
    before = next(moment for moment in WEEK if market.has_capacity(OFFER, moment))
    assert source.due(state.launches[0], end, state, None) is not None
    assert source.due(state.launches[0], before, state, None) is None


SCRIPT = (ScriptedPreemption(after_step=7), ScriptedPreemption(during="checkpoint"))


def fired(number: int) -> Ledger:
    ledger = Ledger()
    for index in range(number):
        quoted = QuotedOffer.quote(OFFER)
        ledger.add(index, LaunchStarted(launch=f"l{index}", offer=quoted, num_nodes=1))
        ended = LaunchEnded(
            launch=f"l{index}",
            reason=EndReason.PREEMPTED,
            terminated_by=TerminatedBy.CLOUD,
            detail=f"script {index + 1} of 2",
        )
        ledger.add(index + 0.5, ended)
    ledger.launch("now", 100, attempt=number + 1)
    return ledger


@pytest.mark.parametrize(
    ("num_fired", "last_step", "is_due"),
    [(0, None, False), (0, 6, False), (0, 7, True), (0, 9, True), (1, 1, True), (2, 99, False)],
)
def test_script_is_followed_line_by_line_as_the_ledger_says(num_fired, last_step, is_due):
    state = fold(RECORD, fired(num_fired).entries)
    source = ScriptedPreemptions(SCRIPT)
    due = source.due(state.launches[-1], at(101), state, last_step)
    assert (due is not None) == is_due
    if due is not None:
        assert due.only_during_checkpoint == (num_fired == 1)


def test_scripted_loss_leaves_the_zone_empty_for_a_while():
    ledger = Ledger()
    ledger.launch("one", 0, until=10, attempt=1)
    state = fold(RECORD, ledger.entries)
    source = ScriptedPreemptions(SCRIPT)
    assert not source.has_capacity(OFFER, at(10), state)
    assert source.has_capacity(make_offer("us-west-2"), at(10), state)
    assert source.has_capacity(OFFER, at(10) + timedelta(hours=1), state)


def test_only_a_checkpoint_of_this_attempt_without_manifest_is_unfinished(tmp_path):
    store = open_store(tmp_path.as_uri())
    store.put(shard_key(5, 1, 0, 2), b"old attempt")
    store.put(shard_key(10, 2, 0, 2), b"complete")
    store.put(manifest_key(10, 2), b"{}")
    assert find_unfinished_checkpoint(only(store), 2) is None
    store.put(shard_key(15, 2, 1, 2), b"half")
    assert find_unfinished_checkpoint(only(store), 2) == shard_key(15, 2, 1, 2)
