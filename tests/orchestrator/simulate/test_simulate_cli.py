"""`orchestrate simulate`: its document, its table, and what it refuses."""

import json
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import simulate as command
from orchestrator.simulate.study import POLICIES
from tests.orchestrator.simulate.markets import zone

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def files(tmp_path):
    """A spec and a folder of traces: one zone that comes and goes, one that is dear and stays."""
    traces = tmp_path / "traces"
    traces.mkdir()
    for name, room, spot in (("a", "110110" * 20, 1.0), ("b", "1" * 120, 2.0)):
        (traces / f"{name}.json").write_text(
            zone(name, room, region=name, spot=spot).model_dump_json()
        )
    spec = {
        "name": "demo",
        "store": str(tmp_path / "store"),
        "infra": "local",
        "model": {"base": str(EXAMPLES / "tiny-llama"), "max_length": 128},
        "data": {"train": str(EXAMPLES / "conversations.json")},
        "limits": {"budget_usd": 5, "deadline": "8h"},
    }
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path, traces


def test_the_command_offers_the_policies_that_there_are():
    """It names them itself: --help does not import them."""
    assert tuple(POLICIES) == command.POLICY_NAMES


def test_the_document_holds_the_contract(orchestrate, files):
    spec, traces = files
    code, out, _ = orchestrate(
        *("simulate", spec, "--traces", traces, "--work", "4h", "--restart", "6min"),
        *("--starts", 4, "--policy", "uniform_progress", "--policy", "auto", "--json"),
    )
    assert code == 0
    document = json.loads(out)
    assert next(iter(document)) == "schema_version"
    assert [policy["name"] for policy in document["policies"]] == ["uniform_progress", "auto"]
    for policy in document["policies"]:
        assert policy["jobs"] == 4
        assert policy["missed_deadlines"] == 0
        assert policy["mean_cost_vs_optimal"] >= 1
        assert 0 < policy["mean_cost_vs_on_demand"] < 1
        low, high = policy["ci95"]
        assert low <= policy["mean_cost_vs_optimal"] <= high
        usd = [job["usd"][policy["name"]] for job in document["jobs"]]
        assert policy["mean_usd"] == pytest.approx(sum(usd) / 4)
    assert document["terms"]["deadline_hours"] == 8
    assert (document["traces"], document["synthetic"]) == (str(traces), False)


def test_without_traces_it_makes_up_a_market_and_says_so(orchestrate, files):
    spec, _ = files
    asked = ("simulate", spec, "--work", "4h", "--starts", 2, "--policy", "greedy")
    code, out, _ = orchestrate(*asked)
    assert code == 0
    assert "The market is synthetic" in out.splitlines()[-1]
    code, out, _ = orchestrate(*asked, "--json")
    document = json.loads(out)
    assert (code, document["traces"], document["synthetic"]) == (0, None, True)
    assert orchestrate(*asked, "--json")[1] == out
    assert orchestrate(*asked, "--json", "--seed", 1)[1] != out


def test_published_traces_are_read_with_what_is_told(orchestrate, files, tmp_path):
    spec, _ = files
    published = tmp_path / "published"
    published.mkdir()
    text = json.dumps({"metadata": {"gap_seconds": 600}, "data": [0, 0, 1] * 80})
    (published / "us-east-1a_v100_1.json").write_text(text)
    asked = ("simulate", spec, "--traces", published, "--work", "4h", "--starts", 2, "--json")
    prices = ("--spot-price", 0.9, "--on-demand-price", 3.06)
    code, out, err = orchestrate(*asked, *prices)
    assert (code, out) == (2, "")
    assert "--as-is" in err
    usd = {}
    for meaning in ("--as-is", "--inverted"):
        code, out, _ = orchestrate(*asked, *prices, meaning)
        assert code == 0
        usd[meaning] = json.loads(out)["optimal"]["mean_usd"]
    assert usd["--inverted"] < usd["--as-is"]


def test_a_made_up_market_has_the_specs_own_zones(orchestrate, files):
    spec, _ = files
    code, out, err = orchestrate(
        *("simulate", spec, "--work", "4h", "--set", "nodes.accelerators=T4:1")
    )
    assert (code, out) == (2, "")
    assert "T4:1" in err


def test_the_table_names_every_policy_and_the_optimum(orchestrate, files):
    spec, traces = files
    code, out, _ = orchestrate(
        "simulate", spec, "--traces", traces, "--work", "2h", "--deadline", "6h", "--starts", 2
    )
    assert code == 0
    for name in ("optimal", "auto", "greedy", "uniform_progress", "on_demand"):
        assert name in out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--work": None}, "--work 48h"),
        ({"--work": "long"}, "--work long"),
        ({"--work": "8h"}, "deadline"),
        ({"--work": "30h", "--deadline": "40h"}, "20.0 h long"),
        ({"--state": "much"}, "--state much"),
        ({"--restart": "0s"}, "--restart 0s"),
        ({"--work": "99999999999d"}, "--work 99999999999d"),
        ({"--state": "9" * 400 + "GB"}, "is no size"),
        ({"--work": "10s"}, "less than a tick"),
        ({"--traces": EXAMPLES}, "is no trace"),
        ({"--spot-price": 1}, "says itself"),
        ({"--nodes": 4}, "1 nodes in a zone at most"),
        ({"--spot-price": "nan", "--traces": None}, "say what --traces do not"),
        ({"--traces": None, "--deadline": "9999999d"}, "shorter --deadline"),
    ],
)
def test_what_it_cannot_do_is_said_in_two_lines(orchestrate, files, changes, words):
    spec, traces = files
    options = {"--traces": traces, "--work": "4h", **changes}
    given = [part for pair in options.items() if pair[1] is not None for part in pair]
    code, out, err = orchestrate("simulate", spec, *given, "--json")
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 2
