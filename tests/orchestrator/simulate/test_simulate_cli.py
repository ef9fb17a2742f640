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
        assert min(usd) <= policy["usd"]["p10"] <= policy["usd"]["p50"] <= policy["usd"]["p90"]
        assert 4 < policy["hours"]["p50"] <= policy["hours"]["p90"] <= 8
    assert document["terms"]["deadline_hours"] == 8


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
