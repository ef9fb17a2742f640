"""The spec: what is accepted, and how what is not is refused."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.offers import Market, MarketPreference, list_offers, shipped_prices
from orchestrator.spec import NewsKind, format_duration, parse_duration, parse_spec
from orchestrator.spec_file import apply_overrides, load_spec

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
MINIMAL = {
    "name": "demo",
    "store": "runs",
    "infra": "local",
    "model": {"base": "model"},
    "data": {"train": "data.json"},
    "limits": {"budget_usd": 5},
}


@pytest.fixture
def write(tmp_path):
    def write_spec(**changes: object) -> Path:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump({**MINIMAL, **changes}))
        return path

    return write_spec


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid_and_survives_run_json(path):
    spec = load_spec(path)
    assert parse_spec(spec.model_dump(mode="json")) == spec


def test_paths_of_data_and_model_are_relative_to_the_spec(write, tmp_path):
    spec = load_spec(write())
    assert spec.data.train == str(tmp_path / "data.json")
    assert spec.model.base == str(tmp_path / "model")


def test_plain_store_path_is_relative_to_the_current_folder(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_spec(write(store="here")).store == (tmp_path / "here").as_uri()


def test_stores_of_places_are_resolved_as_the_run_s_own(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stores = {"aws/us-east-1": "here", "gcp/us-east5": "gs://bucket/runs/"}
    spec = load_spec(write(checkpoints={"stores": stores}))
    resolved = {"aws/us-east-1": (tmp_path / "here").as_uri(), "gcp/us-east5": "gs://bucket/runs"}
    assert spec.checkpoints.stores == resolved
    assert apply_overrides(spec, ["checkpoints.keep_last=5"]).checkpoints.stores == resolved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": {"stores": {"us-east-1": "s3://b"}}}, "'us-east-1' is no place"),
        ({"checkpoints": {"stores": {"aws/x": "ftp://b"}}}, "unknown scheme ftp://"),
        ({"limts": {}}, "unknown key limts; did you mean limits?"),
        ({"limits": {"budgt_usd": 5}}, "unknown key limits.budgt_usd; did you mean budget_usd?"),
        ({"train": {"learning_rat": 1}}, "did you mean learning_rate?"),
        ({"local": {"preemptions": [{"after_stp": 3}]}}, "did you mean after_step?"),
        ({"limits": {}}, "the key limits.budget_usd is missing"),
        ({"limits": {"budget_usd": 0}}, "limits.budget_usd"),
        ({"limits": {"budget_usd": "lots"}}, "lots"),
        ({"limits": {"budget_usd": 5, "deadline": "soon"}}, "'soon' is not a duration"),
        ({"limits": {"budget_usd": 5, "market": "stock"}}, "stock"),
        ({"infra": ["aws", "gpc"]}, "unknown cloud 'gpc'; did you mean gcp?"),
        ({"infra": []}, "write local, or a list of clouds"),
        ({"name": "Not A Name"}, "name"),
        ({"name": "../up"}, "name"),
        ({"store": "ftp://x/y"}, "unknown scheme ftp://"),
        ({"nodes": {"count": 0}}, "nodes.count"),
        ({"nodes": {"count": 2}}, "one node"),
        ({"train": {"epochs": 1, "num_steps": 1}}, "exclude each other"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate"),
        ({"checkpoints": {"interval": "often"}}, "'often' is not an interval"),
        ({"local": {"preemptions": [{}]}}, "after_step or during"),
        ({"local": {"preemptions": [{"after_step": 1, "during": "checkpoint"}]}}, "either"),
        ({"infra": ["aws"], "local": {"ranks": 2}}, "only for infra: local"),
        ({"store": "s3://"}, "names no bucket"),
        ({"store": "file://here/x"}, "not absolute"),
        ({"local": {"preemptions": [{"after_step": 0}]}}, "after_step"),
    ],
)
def test_wrong_keys_and_values_are_named(write, changes, message):
    with pytest.raises(SpecError) as error:
        load_spec(write(**changes))
    assert message in error.value.what
    assert error.value.next_step
    assert "\n" not in error.value.what


@pytest.mark.parametrize(
    "text", ["", "just words", "- a\n- list", "a: [", "a: &x [*x, *x]", "\0", "a: 1\na: 2"]
)
def test_files_that_are_no_spec_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as error:
        load_spec(path)
    assert str(path) in error.value.what
    assert "\n" not in error.value.what


def test_missing_and_binary_and_huge_files_are_refused(tmp_path):
    binary, huge = tmp_path / "binary.yaml", tmp_path / "huge.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    huge.write_bytes(b"#" * 2_000_000)
    for path in (tmp_path / "missing.yaml", binary, huge, tmp_path):
        with pytest.raises(SpecError):
            load_spec(path)


def test_overrides_reach_any_depth_and_are_validated(write):
    spec = load_spec(write(), ["train.seed=3", "local.preemptions=[{after_step: 2}]", "name=x"])
    assert (spec.train.seed, spec.name) == (3, "x")
    assert spec.local is not None
    assert spec.local.preemptions is not None
    assert spec.local.preemptions[0].after_step == 2
    for override in ("nonsense", "=1", "train.seed=-1", "train.sed=1", "name.deeper=1", "train=["):
        with pytest.raises(SpecError):
            load_spec(write(), [override])


def test_resolved_spec_takes_overrides_too(write):
    spec = load_spec(write())
    assert apply_overrides(spec, ["limits.budget_usd=9"]).limits.budget_usd == 9
    with pytest.raises(SpecError):
        apply_overrides(spec, ["limits.budget=9"])


@given(st.timedeltas(min_value=timedelta(seconds=1), max_value=timedelta(days=900)))
def test_durations_round_trip(duration):
    assert parse_duration(format_duration(duration)) == duration


def test_offers_are_sane_and_cheapest_first():
    both = MarketPreference.SPOT_WITH_FALLBACK
    offers = list_offers(shipped_prices(), "A100-80GB:8", None, both)
    assert list(offers) == sorted(offers, key=lambda offer: offer.usd_per_hour)
    spot = [offer for offer in offers if offer.market is Market.SPOT]
    assert all(offer.usd_per_hour < offer.on_demand_usd_per_hour for offer in spot)
    assert len({offer.place for offer in spot}) >= 4


def test_offers_keep_to_the_clouds_and_the_market_asked_for():
    table = shipped_prices()
    offers = list_offers(table, "A100-80GB:8", ["gcp"], MarketPreference.ON_DEMAND)
    assert {(offer.cloud, offer.market) for offer in offers} == {("gcp", Market.ON_DEMAND)}
    with pytest.raises(SpecError, match="TPU"):
        list_offers(table, "TPU:8", None, MarketPreference.SPOT)


def test_messages_are_of_everything_unless_kinds_are_named(write):
    assert load_spec(write()).tracking.notify is None
    everything = load_spec(write(tracking={"notify": {}})).tracking.notify
    assert everything is not None
    assert everything.on == tuple(NewsKind)


def test_the_key_on_is_no_boolean(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(MINIMAL) + "tracking: {notify: {on: [failure, budget]}}\n")
    found = load_spec(path).tracking.notify
    assert found is not None
    assert found.on == (NewsKind.FAILURE, NewsKind.BUDGET)
    changed = load_spec(path, ["tracking.notify={on: [finish]}"])
    assert changed.tracking.notify is not None
    assert changed.tracking.notify.on == (NewsKind.FINISH,)
    assert parse_spec(changed.model_dump(mode="json")) == changed


@pytest.mark.parametrize("kinds", [["budgets"], [], "budget", [7]])
def test_kinds_of_news_that_do_not_exist_are_refused(write, kinds):
    with pytest.raises(SpecError, match="notify") as refused:
        load_spec(write(tracking={"notify": {"on": kinds}}))
    assert ("did you mean budget?" in refused.value.what) == (kinds == ["budgets"])
