"""Prices from SkyPilot's catalog: its columns, its gaps and its known mistakes."""

import json
import os
from decimal import Decimal

import pytest

from orchestrator.catalog import read_catalog
from orchestrator.offers import Market, MarketPreference, list_offers
from tests.end_to_end.conftest import EXAMPLES
from tests.fault_record import record_fault

GPU = "\"{'Gpus': [{'Name': 'A100-80GB', 'Count': 8.0}]}\""
HEADS = {
    "aws": "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,GpuInfo,Price,SpotPrice,Region,"
    "AvailabilityZone",
    "gcp": "InstanceType,vCPUs,AcceleratorName,AcceleratorCount,GpuInfo,Region,AvailabilityZone,"
    "Price,SpotPrice",
    "azure": "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,Price,SpotPrice,Region",
    "lambda": "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,Price,Region,GpuInfo,SpotPrice",
}
ROWS = {
    "aws": [
        f"p4de.24xlarge,A100-80GB,8.0,96.0,{GPU},40.0,10.0,us-east-1,use1-az1",
        f"p4de.24xlarge,A100-80GB,8.0,96.0,{GPU},40.0,40.0,us-east-1,use1-az2",
        f"p4de.24xlarge,A100-80GB,8.0,96.0,{GPU},40.0,2.0,us-west-2,usw2-az1",
        f"p4de.24xlarge,A100-80GB,8.0,96.0,{GPU},,9.0,us-west-2,usw2-az2",
        f"p4d.24xlarge,A100,8.0,96.0,{GPU},22.0,7.0,us-west-2,usw2-az1",
        "m6i.2xlarge,,,8.0,,0.4,0.1,us-east-1,use1-az1",
    ],
    "gcp": [
        "a2-ultragpu-8g,96.0,,,,us-east5,us-east5-a,10.0,3.0",
        "a2-ultragpu-8g,96.0,,,,europe-west4,europe-west4-a,10.0,3.0",
        "a2-ultragpu-8g,96.0,,,,us-west1,us-west1-b,10.0,3.0",
        f",,A100-80GB,8.0,{GPU},us-east5,us-east5-a,34.0,9.5",
        f",,A100-80GB,8.0,{GPU},europe-west4,europe-west4-a,12.0,9.0",
        f",,A100-80GB,8.0,{GPU},us-west1,us-west1-b,33.0,9.0",
        f",,A100-80GB,8.0,{GPU},us-north9,us-north9-z,33.0,9.0",
    ],
    "azure": ["Standard_ND96amsr_A100_v4,A100-80GB,8.0,96.0,32.77,13.1,eastus"],
    "lambda": [
        f"gpu_8x_a100_80gb_sxm4,A100-80GB,8.0,240.0,22.32,us-east-1,{GPU},",
        f"gpu_8x_a100_80gb_sxm4,A100-80GB,8.0,240.0,n/a,us-west-9,{GPU},",
    ],
}


@pytest.fixture
def catalog(tmp_path):
    root = tmp_path / "sky" / ".sky" / "catalogs" / "v8"
    for number, (cloud, rows) in enumerate(ROWS.items()):
        file = root / cloud / "vms.csv"
        file.parent.mkdir(parents=True)
        file.write_text("\n".join([HEADS[cloud], *rows]) + "\n")
        os.utime(file, (1_790_000_000 + number,) * 2)
    return root


def offers(clouds=tuple(ROWS), preference=MarketPreference.SPOT_WITH_FALLBACK):
    return list_offers(read_catalog("A100-80GB:8", clouds), "A100-80GB:8", clouds, preference)


def test_offers_of_four_clouds_are_ranked_and_doubted_prices_come_last(catalog):
    shown = [
        (offer.cloud, offer.zone, offer.usd_per_hour, offer.doubt)
        for offer in offers()
        if offer.market is Market.SPOT
    ]
    assert shown == [
        ("aws", "use1-az1", Decimal("10.0"), None),
        ("gcp", "europe-west4-a", Decimal("12.0"), None),
        ("gcp", "us-west1-b", Decimal("12.0"), None),
        ("gcp", "us-east5-a", Decimal("12.5"), None),
        ("azure", "eastus", Decimal("13.1"), None),
        ("aws", "usw2-az1", Decimal("2.0"), "5% of on demand"),
        ("aws", "use1-az2", Decimal("40.0"), "not below on demand"),
    ]


def test_on_demand_far_below_other_regions_is_doubted(catalog):
    doubts = {o.region: o.doubt for o in offers(("gcp",), MarketPreference.ON_DEMAND)}
    assert doubts == {"us-east5": None, "us-west1": None, "europe-west4": "49% below other regions"}


def zone_names(catalog, account, **names):
    rows = [f"{zone_id.replace('_', '-')},{name}" for zone_id, name in names.items()]
    file = catalog / "aws" / f"az_mappings-{account}.csv"
    file.write_text("\n".join(["AvailabilityZone,AvailabilityZoneName", *rows]) + "\n")


def test_zones_of_aws_have_the_account_s_names(catalog):
    zone_names(catalog, "1a", use1_az1="us-east-1d", usw2_az1="us-west-2a")
    zones = {offer.zone for offer in offers(("aws",))}
    assert zones == {"us-east-1d", "use1-az2", "us-west-2a"}


def test_of_two_accounts_neither_names_zones(catalog):
    for account in ("1a", "2b"):
        zone_names(catalog, account, use1_az1="us-east-1d")
    assert "use1-az1" in {offer.zone for offer in offers(("aws",))}


def test_a_price_that_is_missing_is_no_offer(catalog):
    zones = {offer.zone for offer in offers()}
    assert zones.isdisjoint({"usw2-az2", "us-north9-z", "us-west-9"})
    (only,) = offers(("lambda",))
    assert (only.market, only.usd_per_hour) == (Market.ON_DEMAND, Decimal("22.32"))


def test_the_table_says_how_old_it_is_and_what_is_from_elsewhere(catalog):
    (catalog / "lambda" / "vms.csv").unlink()
    table = read_catalog("A100-80GB:8", ["azure", "gcp", "lambda"])
    assert str(table).startswith("SkyPilot's catalog v8, lambda by orchestrator/prices.csv")
    assert str(table).endswith("(2026-09-21)")
    assert "lambda" in {offer.cloud for offer in table.offers}
    (catalog / "azure" / "vms.csv").unlink()
    assert read_catalog("A100-80GB:8", ["azure"]) is None


def test_kinds_whose_rows_are_not_understood_are_priced_by_the_shipped_table(catalog):
    assert read_catalog("V100:8", ["gcp"]) is None


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe",
        b"A,B\n1,2\n",
        HEADS["azure"].encode() + b"\nStandard_ND96amsr_A100_v4,A100-80GB,8.0,96.0,32.77",
        HEADS["azure"].encode() + b"\nStandard_ND96amsr_A100_v4,A100-80GB",
        b"",
    ],
    ids=["no text", "other columns", "cut row", "shorter row", "empty"],
)
def test_a_file_that_makes_no_sense_is_no_crash(catalog, text):
    (catalog / "azure" / "vms.csv").write_bytes(text)
    table = read_catalog("A100-80GB:8", ["azure", "lambda"])
    assert {offer.cloud for offer in table.offers} == {"lambda"}


def test_plan_uses_the_catalog_where_there_is_one(orchestrate, catalog):
    spec = EXAMPLES / "vicuna-13b.yaml"
    code, out, err = orchestrate("plan", spec, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["prices"]["source"] == "SkyPilot's catalog v8"
    assert document["offers"][0]["usd_per_hour"] == 10
    assert document["offers"][-1]["doubt"] == "not below on demand"
    code, out, _ = orchestrate("plan", spec, "--set", "infra=[lambda, azure]")
    assert "azure" in out
    assert "Prices: SkyPilot's catalog v8 (2026-09-21)" in out


def test_plan_goes_by_the_shipped_table_and_says_what_is_missing(orchestrate, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    code, out, _ = orchestrate("plan", EXAMPLES / "vicuna-13b.yaml")
    assert code == 0
    assert "Prices: orchestrator/prices.csv" in out
    assert "SkyPilot's catalog of aws, gcp, azure, lambda is not on this machine" in out
    for cloud in ("aws", "gcp", "azure", "lambda"):
        assert f"No credentials for {cloud} here" in out


def test_plan_ranks_four_clouds_and_says_how_long_and_how_much(orchestrate, catalog):
    code, out, err = orchestrate("plan", EXAMPLES / "vicuna-13b.yaml", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert {offer["cloud"] for offer in document["offers"]} == {"aws", "gcp", "azure", "lambda"}
    forecast = document["forecast"]
    # The policy reserves what a start takes of nodes, not of egress: $14 for a move between clouds.
    assert forecast["usd"]["p50"] <= forecast["usd"]["p90"] <= document["worst_case_usd"] + 14.04
    assert 0 <= forecast["chance_unfinished"] <= forecast["chance_late"] <= 1
    assert forecast["assumptions"]


@pytest.mark.parametrize("price", ["", "n/a", "0.0", "-3", "nan"])
def test_nodes_of_an_unknown_price_are_neither_planned_nor_launched(orchestrate, catalog, price):
    row = f"Standard_B9,B9,8.0,128.0,{price},{price},eastus"
    (catalog / "azure" / "vms.csv").write_text(f"{HEADS['azure']}\n{row}\n")
    changes = ["--set", "nodes.accelerators=B9:8", "--set", "infra=[azure]"]
    refused = []
    for command in (("plan",), ("launch", "--yes")):
        code, out, err = orchestrate(
            command[0], EXAMPLES / "vicuna-13b.yaml", *changes, *command[1:]
        )
        assert (code, out, len(err.splitlines())) == (2, "", 2), err
        assert "No offer for nodes.accelerators 'B9:8'" in err
        refused.append(err)
    record_fault("F23", "a price that is unknown", injected=len(refused))
