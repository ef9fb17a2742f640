"""What AWS says of itself, through boto3: merged into the offers, or a line that says why not."""

import json
from decimal import Decimal

import pytest

from orchestrator.aws import ask_quotas
from orchestrator.offers import Market
from orchestrator.prices import price_table
from orchestrator.spec_file import load_spec
from tests.ec2_service import ec2_service
from tests.end_to_end.conftest import EXAMPLES
from tests.orchestrator.test_catalog import catalog  # noqa: F401  # a fixture

SPEC = EXAMPLES / "vicuna-13b.yaml"
P4DE = "p4de.24xlarge"


@pytest.fixture
def ec2(monkeypatch):
    with ec2_service() as service:
        monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", service.endpoint)
        monkeypatch.setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", service.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        service.prices = {
            "us-east-1": [
                ("us-east-1c", "use1-az1", P4DE, "11.5"),
                ("us-east-1c", "use1-az1", P4DE, "11.25"),
                ("us-east-1f", "use1-az9", P4DE, "9.75"),
            ],
            "us-west-2": [("us-west-2b", None, P4DE, "7.5")],
        }
        yield service


def aws_offers(table, region):
    found = [o for o in table.offers if o.region == region and o.accelerators == "A100-80GB:8"]
    return sorted((o.zone, o.usd_per_hour) for o in found if o.market is Market.SPOT)


@pytest.mark.usefixtures("catalog")
def test_spot_prices_of_now_replace_those_of_the_catalog_and_name_zones(ec2):
    table = price_table(load_spec(SPEC, ()))
    expected = [("us-east-1c", Decimal("11.25")), ("us-east-1f", Decimal("9.75"))]
    assert aws_offers(table, "us-east-1") == expected
    assert aws_offers(table, "us-west-2") == [("us-west-2b", Decimal("7.5"))]
    on_demand = [
        o.zone for o in table.offers if o.region == "us-east-1" and o.market is Market.ON_DEMAND
    ]
    assert on_demand == ["us-east-1c", "use1-az2", "us-east-1"]  # by name where one is known
    assert sorted(ec2.asked) == ["us-east-1", "us-west-2"]
    assert "AWS' own spot prices of 20" in str(table)
    assert str(table).endswith("UTC in us-east-1, us-west-2")


@pytest.mark.usefixtures("catalog")
def test_a_region_that_refuses_or_is_silent_is_a_line_and_keeps_its_prices(ec2):
    ec2.refused, ec2.silent = {"us-east-1"}, {"us-west-2"}
    table = price_table(load_spec(SPEC, ()))
    assert aws_offers(table, "us-east-1")[0] == ("use1-az1", Decimal("10.0"))
    assert table.updates == ()
    gaps = [gap for gap in table.gaps if gap.startswith("AWS did not")]
    assert gaps[0] == "AWS did not say the spot price of us-east-1: UnauthorizedOperation"
    assert gaps[1].startswith("AWS did not say the spot price of us-west-2: ")


@pytest.mark.usefixtures("catalog")
def test_a_profile_that_is_not_there_is_a_line(ec2, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "gone")
    gaps = price_table(load_spec(SPEC, ())).gaps
    assert "AWS did not say the spot price of us-east-1: ProfileNotFound" in gaps


@pytest.mark.usefixtures("catalog")
def test_nothing_is_asked_without_need(ec2, orchestrate, monkeypatch):
    price_table(load_spec(SPEC, ()), offline=True)
    price_table(load_spec(SPEC, ["infra=[gcp, lambda]"]))
    price_table(load_spec(SPEC, ["limits.market=on_demand"]))
    assert orchestrate("plan", SPEC, "--offline")[0] == 0
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL_EC2")
        patch.setenv("AWS_ENDPOINT_URL", ec2.endpoint)  # a store that speaks S3
        (gap,) = [gap for gap in price_table(load_spec(SPEC, ())).gaps if "ENDPOINT" in gap]
        assert "is not asked" in gap
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    price_table(load_spec(SPEC, ()))
    assert ec2.asked == []


@pytest.mark.usefixtures("catalog")
def test_plan_ranks_and_shows_them(ec2, orchestrate):
    code, out, _ = orchestrate("plan", SPEC)
    assert code == 0
    assert "1. aws    us-west-2        us-west-2b         spot       $     7.5/h" in out
    assert "No credentials for gcp here" in out
    assert "No credentials for aws" not in out
    prices = json.loads(orchestrate("plan", SPEC, "--json")[1])["prices"]
    assert prices["updates"][0].startswith("AWS' own spot prices")


def test_quotas_are_those_of_the_account(ec2):
    ec2.quotas = {("us-east-1", "L-1"): 96.0}
    answers, failures = ask_quotas("L-1", ["us-east-1", "us-west-2"])
    assert answers == {"us-east-1": 96.0}
    assert failures == {"us-west-2": "NoSuchResourceException"}
