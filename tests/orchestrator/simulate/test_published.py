"""Traces as others have published them: what file and path say counts, and nothing is guessed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import InputError
from orchestrator.simulate.market import make_market
from orchestrator.simulate.published import Told
from orchestrator.simulate.traces import read_traces
from tests.orchestrator.simulate.markets import zone

PRICES = {"spot_usd_per_hour": 0.9, "on_demand_usd_per_hour": 3.06}
PRICE_INFO = {"price": 18.98, "on_demand_price": 82.53, "machine_type": "a3-highgpu-8g"}


def write(path, room, *, gap=300, prices=None, **metadata):
    """Write a published file; `room` has a digit per tick."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"metadata": {"gap_seconds": gap, **metadata}, "data": [int(d) for d in room]}
    if prices is not None:
        document["prices"] = prices
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (
            "availability/1-node/aws-02-15-2023/us-east-1a_v100_1",
            ("aws", "us-east-1", "us-east-1a", "V100:1"),
        ),
        (
            "preemption/4-node/aws-08-03-2023/us-west-2c_v100_1",
            ("aws", "us-west-2", "us-west-2c", "V100:1"),
        ),
        (
            "preemption/1-node/gcp-04-30-2023/us-central1-c_c3-88",
            ("gcp", "us-central1", "us-central1-c", "c3-88"),
        ),
    ],
)
def test_spot_traces_are_read_where_their_repository_has_them(tmp_path, path, named):
    file = tmp_path / f"{path}.json"
    write(file, "0140")
    (trace,) = read_traces(file.parent, Told(**PRICES))
    assert (trace.cloud, trace.region, trace.zone, trace.accelerators) == named
    assert trace.available_nodes == [0, 1, 4, 0]
    assert (trace.spot_usd_per_hour, trace.on_demand_usd_per_hour) == (0.9, 3.06)
    assert trace.source == "skypilot-org/spot-traces"


def test_the_skynomad_artifact_says_preempted_and_its_prices(tmp_path):
    for name in ("us-central1-a_h100_16", "europe-west1-c_h100_16"):
        write(
            tmp_path / name / "full.json",
            "0110",
            gap=600,
            prices=[2, 2, 3, 3],
            zone=name.partition("_")[0],
            price_info=PRICE_INFO,
        )
        write(tmp_path / name / "0.json", "01", gap=600, price_info=PRICE_INFO)
    traces = read_traces(tmp_path)
    assert [(trace.cloud, trace.region) for trace in traces] == [
        ("gcp", "europe-west1"),
        ("gcp", "us-central1"),
    ]
    for trace in traces:
        assert trace.available_nodes == [1, 0, 0, 1]
        assert trace.spot_usd_per_hour == [2, 2, 3, 3]
        assert trace.on_demand_usd_per_hour == 82.53
        assert trace.instance_type == "a3-highgpu-8g"
        assert trace.source == "SkyNomad artifact"


def test_a_price_that_is_told_goes_before_that_of_the_file(tmp_path):
    write(tmp_path / "us-east-1f_v100_1" / "full.json", "01", price_info=PRICE_INFO)
    (as_it_says,) = read_traces(tmp_path)
    (as_told,) = read_traces(tmp_path, Told(spot_usd_per_hour=1.5))
    assert (as_it_says.spot_usd_per_hour, as_told.spot_usd_per_hour) == (18.98, 1.5)
    assert as_told.on_demand_usd_per_hour == 82.53


@given(rooms=st.lists(st.text("01", min_size=1, max_size=40), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_an_inverted_file_is_the_same_market_as_its_twin(tmp_path_factory, rooms):
    folder = tmp_path_factory.mktemp("traces")
    for number, room in enumerate(rooms):
        name = f"us-east-{number + 1}a_v100_1.json"
        write(folder / "as-is" / name, room)
        write(folder / "inverted" / name, ["10"[int(digit)] for digit in room])
    markets = [
        make_market(read_traces(folder / name, Told(is_inverted=is_inverted, **PRICES)), 1)
        for name, is_inverted in (("as-is", False), ("inverted", True))
    ]
    assert np.array_equal(markets[0].up, markets[1].up)
    assert markets[0].paid_until == markets[1].paid_until
    assert markets[0].names == markets[1].names


@pytest.mark.parametrize(
    ("told", "words", "advice"),
    [
        (Told(**PRICES), "whether 1 is", "--as-is"),
        (Told(is_inverted=False, on_demand_usd_per_hour=3), "no spot price", "--spot-price"),
        (Told(is_inverted=False, spot_usd_per_hour=1), "no on-demand price", "--on-demand-price"),
        (Told(is_inverted=True, **PRICES), "has a 2", "--as-is"),
    ],
)
def test_what_is_not_known_is_asked_for(tmp_path, told, words, advice):
    write(tmp_path / "us-east-1a_v100_1.json", "0120")
    with pytest.raises(InputError, match=words) as refusal:
        read_traces(tmp_path, told)
    assert advice in refusal.value.next_step


def test_a_zone_that_no_name_says_is_asked_for(tmp_path):
    write(tmp_path / "somewhere_v100_1.json", "01")
    with pytest.raises(InputError, match="named after no zone") as refusal:
        read_traces(tmp_path, Told(is_inverted=False, **PRICES))
    assert "us-east-1a_v100_1.json" in refusal.value.next_step


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"metadata": {"gap_seconds": 300}}', "data: Field required"),
        ('{"metadata": {}, "data": [1]}', "gap_seconds: Field required"),
        ('{"metadata": {"gap_seconds": 0}, "data": [1]}', "gap_seconds"),
        ('{"metadata": {"gap_seconds": 300}, "data": [-1]}', r"data\.0"),
        ('{"metadata": {"gap_seconds": 300}, "data": []}', "data"),
        ('{"metadata": 3, "data": [1]}', "metadata"),
        ('{"metadata": {"gap_seconds": 300}, "data": [1, 1], "prices": [1]}', "1 spot prices for"),
        ('{"metadata": {"gap_seconds": 300}, "data": [1], "prices": [0]}', r"prices\.0"),
        ('{"metadata": {"gap_seconds": 300}, "da', "is no trace"),
        ("[" * 100_000, "is no trace"),
        ("[]", "is no trace"),
        ("", "is no trace"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, words):
    (tmp_path / "us-east-1a_v100_1.json").write_text(text)
    with pytest.raises(InputError, match=words) as refusal:
        read_traces(tmp_path, Told(is_inverted=False, on_demand_usd_per_hour=3))
    assert "us-east-1a_v100_1.json" in refusal.value.what
    assert "\n" not in refusal.value.what


def test_our_own_format_says_it_all_itself(tmp_path):
    (tmp_path / "a.json").write_text(zone("a", "01").model_dump_json())
    assert len(read_traces(tmp_path)) == 1
    with pytest.raises(InputError, match="says itself"):
        read_traces(tmp_path, Told(is_inverted=True))
