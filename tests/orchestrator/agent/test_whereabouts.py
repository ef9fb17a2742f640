"""Where a node is, by the metadata services of three clouds, and what it is billed as."""

from __future__ import annotations

import pytest

from orchestrator.agent.whereabouts import Whereabouts, find_offer, find_whereabouts
from orchestrator.ledger.facts import QuotedOffer
from orchestrator.offers import Market
from tests.metadata_service import metadata_service
from tests.orchestrator.histories import make_offer


@pytest.fixture
def service(monkeypatch):
    with metadata_service() as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{service.host}")
        monkeypatch.setenv("GCE_METADATA_HOST", service.host)
        monkeypatch.setenv("AZURE_METADATA_SERVICE_ENDPOINT", f"http://{service.host}")
        yield service


@pytest.mark.parametrize(
    ("cloud", "region", "zone", "found"),
    [
        ("aws", "us-east-1", "us-east-1b", ("us-east-1b",)),
        ("gcp", "", "us-central1-a", ("us-central1-a",)),
        ("azure", "eastus", "2", ("eastus-2", "2")),
        ("azure", "eastus", "", ("eastus", "eastus")),
    ],
)
@pytest.mark.parametrize("is_spot", [True, False])
def test_each_cloud_says_where_a_node_is_and_how_it_was_bought(
    service, cloud, region, zone, found, is_spot
):
    service.region, service.zone, service.is_spot = region, zone, is_spot
    place = find_whereabouts(cloud)
    assert place == Whereabouts(
        cloud=cloud,
        region=region or "us-central1",
        zones=found,
        instance_type="p4de.24xlarge",
        market=Market.SPOT if is_spot else Market.ON_DEMAND,
    )


def test_nothing_is_known_where_no_service_makes_sense(service):
    service.garbage = b"<html>"
    assert find_whereabouts("azure") is None


OFFERS = tuple(
    QuotedOffer.quote(offer)
    for offer in (
        make_offer(usd="9"),
        make_offer(market=Market.ON_DEMAND, usd="30"),
        make_offer(usd="8", zone="us-east-1-b"),
        make_offer(region="us-west-2", usd="5"),
    )
)


def place(**changes: object) -> Whereabouts:
    known = {
        "cloud": "aws",
        "region": "us-east-1",
        "zones": ("us-east-1-a",),
        "instance_type": "p4de.24xlarge",
        "market": Market.SPOT,
    }
    return Whereabouts(**{**known, **changes})


def test_offer_is_that_of_the_node_s_own_zone_and_market():
    assert find_offer(OFFERS, place()) == OFFERS[0]
    assert find_offer(OFFERS, place(zones=("x", "us-east-1-b"))).usd_per_hour == 8
    assert find_offer(OFFERS, place(market=Market.ON_DEMAND)) == OFFERS[1]


def test_zone_without_an_offer_has_its_region_s_price_and_its_own_name():
    found = find_offer(OFFERS, place(zones=("us-east-1-f",)))
    assert (found.zone, found.usd_per_hour) == ("us-east-1-f", 8)


def test_region_without_an_offer_is_billed_as_the_cheapest_but_under_its_own_name(caplog):
    found = find_offer(OFFERS, place(region="eu-west-1", zones=("eu-west-1-a",)))
    assert (found.region, found.zone, found.usd_per_hour) == ("eu-west-1", "eu-west-1-a", 5)
    assert "no offer was quoted" in caplog.text


def test_node_of_which_nobody_knows_is_billed_as_the_cheapest_and_says_so(caplog):
    assert find_offer(OFFERS, None) == OFFERS[3]
    assert "the cheapest offer" in caplog.text
