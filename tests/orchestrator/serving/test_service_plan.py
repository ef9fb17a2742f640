"""What a service would cost, and which models have room on a node."""

from __future__ import annotations

from decimal import Decimal

import pytest

from orchestrator.cli.serving_texts import render_service_plan
from orchestrator.errors import UsageError
from orchestrator.offers import Market, MarketPreference
from orchestrator.serving.plan import (
    Replicas,
    plan_service,
    read_accelerators,
    require_room,
    what_fits,
)

GB = 10**9


def plan(market=MarketPreference.SPOT_WITH_FALLBACK, least=2, most=3, accelerators="A100-80GB:8"):
    asked = Replicas(least=least, most=most, requests_per_s=1.0, market=market)
    return plan_service("chat", accelerators, ["aws", "gcp"], asked, offline=True)


def test_the_worst_case_has_an_on_demand_node_beside_each_spot_node_at_the_dearest():
    found = plan()
    spot, on_demand = (
        [one.usd_per_hour for one in found.offers if one.market is market]
        for market in (Market.SPOT, Market.ON_DEMAND)
    )
    assert found.worst_usd_per_hour == 3 * (max(spot) + max(on_demand))
    assert found.usd_per_hour(2, Market.SPOT) == 2 * min(spot)
    assert found.usd_per_hour(3, Market.ON_DEMAND) == 3 * min(on_demand)


def test_without_fallback_the_worst_case_is_spot_alone():
    found = plan(MarketPreference.SPOT)
    assert found.worst_usd_per_hour == 3 * max(one.usd_per_hour for one in found.offers)
    assert found.usd_per_hour(2, Market.ON_DEMAND) is None


def test_prices_that_are_doubted_are_no_place_to_go():
    assert all(one.doubt is None for one in plan().offers)


def test_nodes_without_a_known_price_are_refused():
    with pytest.raises(UsageError, match="No price of L4:1 is known"):
        plan(accelerators="L4:1")


def test_people_see_both_ends_of_the_bill_and_what_one_replica_means():
    text = render_service_plan(plan(least=1, most=3), {"demo": 14 * GB})
    assert "Service chat: demo (14.0 GB) on each replica" in text
    assert "1 to 3 (above 1 requests/s on each) x A100-80GB:8" in text
    assert "Worst case: $" in text
    assert "--replicas 2" in text
    cheapest = plan().usd_per_hour(1, Market.SPOT)
    assert isinstance(cheapest, Decimal)
    assert f"All on spot: ${cheapest}/h" in text


@pytest.mark.parametrize(
    ("accelerators", "weights", "fits"),
    [
        ("A100:1", [14 * GB], True),
        ("A100:1", [140 * GB], False),
        ("A100:8", [140 * GB], False),  # a model is on one GPU
        ("A100:1", [14 * GB] * 2, True),
        ("A100:1", [14 * GB] * 3, False),
        ("A100:3", [14 * GB] * 3, True),
        ("NPU:1", [140 * GB], True),  # nobody knows
    ],
)
def test_models_share_a_nodes_gpus_evenly(accelerators, weights, fits):
    if fits:
        require_room(accelerators, weights)
    else:
        with pytest.raises(UsageError, match=f"On {accelerators} there are"):
            require_room(accelerators, weights)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("A100:1", "A100:1"), ("a100-80gb:8", "A100-80GB:8"), ("l4", "L4:1"), ("NPU:2", "NPU:2")],
)
def test_accelerators_are_written_as_in_price_lists(text, meant):
    assert read_accelerators(text) == meant


@pytest.mark.parametrize("text", ["A100:0", "A100:x", "A100:-1", "A100:", ":1", "A100:1:1", ""])
def test_what_are_no_accelerators_is_refused(text):
    with pytest.raises(UsageError, match="is not KIND:COUNT"):
        read_accelerators(text)


def test_what_would_fit_is_said():
    assert what_fits([14 * GB]).startswith("A100:1, A100-80GB:1")
    assert "V100:1" not in what_fits([14 * GB]).split(", ")
    assert what_fits([500 * GB]) == "no GPU that is known here"
