"""Made-up markets: the seed decides all of them; old spells last; nothing begins at hour 0."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import InputError
from orchestrator.offers import Market, Offer
from orchestrator.simulate.market import make_market
from orchestrator.simulate.synthetic import LEAST_SHARE, MOST_SHARE, synthesize

GAP_HOURS = 300 / 3600
# Ages in hours, and the losses per hour that synthetic.py and docs/policy.md say are drawn.
AGES = (0, 1 / 3, 1, 3, 8, 24, 1e6)
OF_SINGLE_GPUS = (1.41, 0.77, 0.30, 0.16, 0.11, 0.03)
OF_WHOLE_MACHINES = (3.1, 0.88, 0.50, 0.32, 0.12, 0.04)

seeds = st.integers(-(2**70), 2**70)


def offer(name, *, market=Market.SPOT, doubt=None, usd="1.5", region="r"):
    return Offer(
        cloud="aws",
        region=region,
        zone=name,
        instance_type="p3.2xlarge",
        accelerators="V100:1",
        market=market,
        usd_per_hour=Decimal(usd),
        on_demand_usd_per_hour=Decimal(3),
        doubt=doubt,
    )


def rooms(count, hours, *, seed=0, num_gpus=1, num_nodes=1):
    """Return whether there is room, [zone, tick], in so many zones."""
    offers = [offer(f"z{number}") for number in range(count)]
    traces = synthesize(offers, hours=hours, seed=seed, num_gpus=num_gpus, num_nodes=num_nodes)
    return np.array([trace.available_nodes for trace in traces]) > 0


def hazards(up):
    """Return losses per hour by the age of the node, for nodes whose start was seen."""
    edges = np.array(AGES) / GAP_HOURS
    ended, going_on = [], []
    for row in up:
        changes = np.flatnonzero(np.diff(row)) + 1
        first = 0 if row[changes[0]] else 1
        ended.append(np.diff(changes)[first::2])
        if row[-1]:
            going_on.append(len(row) - changes[-1])
    lengths = np.concatenate([*ended, going_on])[:, None]
    hours = np.clip(lengths - edges[:-1], 0, np.diff(edges)).sum(axis=0) * GAP_HOURS
    losses, _ = np.histogram(np.concatenate(ended) - 0.5, edges)
    return losses / hours


@given(seed=seeds, num_nodes=st.integers(1, 9), count=st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_the_same_seed_is_the_same_market_to_the_byte(seed, num_nodes, count):
    offers = [offer(f"z{number}") for number in range(count)]

    def text():
        traces = synthesize(offers, hours=50, seed=seed, num_gpus=8, num_nodes=num_nodes)
        return "".join(trace.model_dump_json() for trace in traces)

    assert text() == text()


def test_another_seed_is_another_market():
    assert (rooms(3, 100, seed=1) != rooms(3, 100, seed=2)).any()


@given(seed=seeds, num_nodes=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_a_market_is_as_long_as_was_asked_and_holds_a_gang_or_nobody(seed, num_nodes):
    traces = synthesize(
        [offer("a"), offer("b")], hours=30.1, seed=seed, num_gpus=1, num_nodes=num_nodes
    )
    for trace in traces:
        assert len(trace.available_nodes) == 362
        assert set(trace.available_nodes) <= {0, num_nodes}
        assert (trace.spot_usd_per_hour, trace.on_demand_usd_per_hour) == (1.5, 3.0)
        assert trace.source == "synthetic"
    assert make_market(traces, num_nodes).num_ticks == 362


@pytest.mark.parametrize(("num_gpus", "documented"), [(1, OF_SINGLE_GPUS), (8, OF_WHOLE_MACHINES)])
def test_losses_fall_with_age_as_documented(num_gpus, documented):
    found = hazards(rooms(200, 4000, num_gpus=num_gpus))
    assert (np.diff(found) < 0).all()
    assert found[:5] == pytest.approx(documented[:5], rel=0.15)
    assert found[5] == pytest.approx(documented[5], rel=0.35)


def test_gangs_are_lost_more_often():
    def lost(num_nodes):
        up = rooms(100, 1000, num_nodes=num_nodes)
        return (up[:, :-1] & ~up[:, 1:]).sum() / up.sum()

    # The fourth root, as in the forecast.
    assert lost(16) / lost(1) == pytest.approx(2, rel=0.15)


def test_the_first_hours_are_like_the_last():
    up = rooms(3000, 48)
    few = round(4 / GAP_HOURS)
    assert up[:, 0].mean() == pytest.approx(up[:, -1].mean(), abs=0.02)
    assert up[:, 0].mean() == pytest.approx((LEAST_SHARE + MOST_SHARE) / 2, abs=0.02)
    lost = up[:, :-1] & ~up[:, 1:]
    assert lost[:, :few].sum() == pytest.approx(lost[:, -few:].sum(), rel=0.1)
    came = ~up[:, :-1] & up[:, 1:]
    assert came[:, :few].sum() == pytest.approx(came[:, -few:].sum(), rel=0.1)


@given(seed=seeds)
@settings(max_examples=5, deadline=None)
def test_zones_have_room_from_seldom_to_nearly_always(seed):
    shares = np.sort(rooms(6, 20_000, seed=seed).mean(axis=1))
    assert (shares > LEAST_SHARE - 0.1).all()
    assert (shares < MOST_SHARE + 0.03).all()
    assert shares[0] < 0.45
    assert shares[-1] > 0.75


def test_spot_that_is_in_doubt_and_on_demand_make_no_zone():
    offers = [
        offer("a", market=Market.ON_DEMAND),
        offer("b", doubt="not below on demand"),
        offer("c", usd="1"),
        offer("c", usd="2"),
        replace(offer("c"), region="elsewhere"),
    ]
    traces = synthesize(offers, hours=10, seed=0, num_gpus=1, num_nodes=1)
    named = [(trace.region, trace.zone, trace.spot_usd_per_hour) for trace in traces]
    assert named == [("r", "c", 1.0), ("elsewhere", "c", 1.5)]


@pytest.mark.parametrize(
    ("offers", "hours", "words"), [([], 10, "No spot offer"), ([offer("a")], 1e9, "1e\\+09 h")]
)
def test_what_cannot_be_made_up_is_refused(offers, hours, words):
    with pytest.raises(InputError, match=words):
        synthesize(offers, hours=hours, seed=0, num_gpus=1, num_nodes=1)
