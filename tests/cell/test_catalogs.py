"""The cell's catalogs, as the project's own reader has them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from orchestrator.catalog import read_catalog
from orchestrator.offers import Market
from tests.cell.catalogs import set_prices, write_catalogs


@pytest.fixture
def home(tmp_path, monkeypatch):
    write_catalogs(tmp_path)
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def prices(accelerators, market, *clouds):
    table = read_catalog(accelerators, clouds or ("aws", "gcp"))
    return {one.zone: one.usd_per_hour for one in table.offers if one.market is market}


@pytest.mark.parametrize("accelerators", ["A100:8", "A100-80GB:8"])
def test_both_clouds_have_both_machines_in_several_regions(home, accelerators):
    for market in Market:
        assert len(prices(accelerators, market, "aws")) == 6
        assert len(prices(accelerators, market, "gcp")) == 4


def test_a_price_changes_in_one_zone_and_nowhere_else(home):
    before = prices("A100:8", Market.SPOT)
    assert set_prices(home, "aws", "p4d.24xlarge", zone="us-east-1a", spot=30.5) == 1
    after = prices("A100:8", Market.SPOT)
    assert {zone for zone in before if before[zone] != after[zone]} == {"us-east-1a"}
    assert after["us-east-1a"] == Decimal("30.5")


def test_on_google_the_machine_and_its_accelerators_add_up_to_the_price(home):
    assert set_prices(home, "gcp", "a2-highgpu-8g", spot=20, on_demand=31.25) == 4
    assert set(prices("A100:8", Market.SPOT, "gcp").values()) == {Decimal(20)}
    assert set(prices("A100:8", Market.ON_DEMAND, "gcp").values()) == {Decimal("31.25")}
    assert Decimal(20) not in prices("A100-80GB:8", Market.SPOT, "gcp").values()


def test_an_unknown_machine_changes_nothing(home):
    assert set_prices(home, "aws", "p5.48xlarge", spot=1) == 0
