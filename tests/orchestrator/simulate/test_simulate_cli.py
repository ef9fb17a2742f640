"""`orchestrate simulate`: its document, its table, and what it refuses."""

import json
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import simulate as command
from orchestrator.policy.named import POLICIES
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


def test_work_and_state_are_what_plan_assumes_unless_they_are_given(orchestrate):
    spec = EXAMPLES / "vicuna-7b.yaml"
    asked = ("simulate", spec, "--starts", 1, "--policy", "greedy", "--json")
    code, out, _ = orchestrate(*asked)
    assert code == 0
    terms = json.loads(out)["terms"]
    assert (terms["work_hours"], terms["state_gb"]) == pytest.approx((5.2, 84), rel=0.01)
    code, out, _ = orchestrate(*asked, "--work", "7h", "--state", "1GB")
    assert code == 0
    terms = json.loads(out)["terms"]
    assert (terms["work_hours"], terms["state_gb"]) == (7, 1)


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
    for name in ("optimal", "auto", "skynomad", "greedy", "uniform_progress", "on_demand"):
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


def ask(orchestrate, files, *what_if):
    spec, traces = files
    keys = [part for one in what_if for part in ("--what-if", one)]
    return orchestrate("simulate", spec, "--traces", traces, "--work", "2h", "--starts", 2, *keys)


def test_what_if_has_a_row_for_each_combination(orchestrate, files):
    spec, traces = files
    code, out, _ = orchestrate(
        *("simulate", spec, "--traces", traces, "--work", "2h", "--starts", 2, "--json"),
        *("--what-if", "deadline=2h,3h,6h", "--what-if", "regions=1,a+b"),
    )
    assert code == 0
    document = json.loads(out)
    assert next(iter(document)) == "schema_version"
    assert document["what_if"]["keys"] == ["deadline", "regions"]
    rows = document["what_if"]["rows"]
    assert [row["values"]["deadline"] for row in rows] == ["2h", "2h", "3h", "3h", "6h", "6h"]
    assert {row["policy"] for row in rows} == {"auto"}
    for row in rows[:2]:
        assert "the deadline is 2 h" in row["infeasible"]
        assert row["mean_usd"] is row["usd"] is row["missed_share"] is None
    for row in rows[2:]:
        assert row["infeasible"] is None
        assert row["starts"] == rows[2]["starts"]
        assert row["missed_share"] == 0
        assert row["usd"]["p10"] <= row["usd"]["p50"] <= row["usd"]["p90"]
        assert row["mean_usd"] >= row["optimal_mean_usd"] - 1e-9
    assert rows[2]["zones"] == ["a"]
    assert rows[3]["zones"] == ["a", "b"]
    assert [row["is_cheapest"] for row in rows].count(True) == 1


def test_what_if_prints_a_row_for_each_value_and_says_what_cannot_be(orchestrate, files):
    code, out, _ = ask(orchestrate, files, "deadline=2h,3h,6h")
    assert code == 0
    rows = [line.split()[0] for line in out.splitlines()[:4]]
    assert rows == ["deadline", "2h", "3h", "6h"]
    assert "Least mean cost: deadline=" in out
    assert "deadline=2h is not possible: 2 h of work" in out


def test_another_gpu_brings_its_market_and_its_work(orchestrate, files):
    spec, traces = files
    fast = traces.parent / "fast"
    fast.mkdir()
    (fast / "c.json").write_text(zone("c", "1" * 120, spot=2.0).model_dump_json())
    code, out, _ = orchestrate(
        *("simulate", spec, "--traces", traces, "--starts", 2, "--json"),
        *("--what-if", f"gpu=traces:work=4h,{fast}:work=1h"),
    )
    assert code == 0
    slow, quick = json.loads(out)["what_if"]["rows"]
    assert (slow["terms"]["work_hours"], quick["terms"]["work_hours"]) == (4, 1)
    assert quick["zones"] == ["c"]
    assert quick["is_cheapest"]


@pytest.mark.parametrize(
    ("what_if", "words"),
    [
        (["dedline=3h"], "did you mean deadline?"),
        (["frobnicate=3h"], "it may be deadline"),
        (["deadline"], "write deadline=VALUE"),
        (["deadline=3h,"], "no value empty"),
        (["deadline=3h,3h"], "a value twice"),
        (["deadline=3h", "deadline=4h"], "is there twice"),
        (["deadline=3h", "work=1h", "nodes=1"], "at most 2 keys"),
        (["deadline=soon"], "--what-if deadline soon"),
        (["nodes=0"], "nodes=0"),
        (["state=much"], "state much"),
        (["regions=3"], "has 2 regions, not 3"),
        (["zones=bb"], "did you mean b?"),
        (["zones=1:work=2h"], "goes with gpu and nodes only"),
        (["gpu=trace"], "did you mean traces?"),
        (["gpu=traces:work=1h", "work=2h"], "gpu and work both set the work"),
        (["gpu=traces:work=1h", "nodes=2:work=2h"], "gpu and nodes both set the work"),
    ],
)
def test_what_cannot_be_varied_is_said_in_two_lines(orchestrate, files, what_if, words):
    code, out, err = ask(orchestrate, files, *what_if)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 2


def test_plot_writes_a_page_beside_what_is_printed(orchestrate, files, tmp_path):
    page = tmp_path / "page.html"
    spec, traces = files
    code, out, err = orchestrate(
        *("simulate", spec, "--traces", traces, "--work", "2h", "--starts", 2, "--json"),
        *("--policy", "greedy", "--plot", page),
    )
    assert code == 0
    assert json.loads(out)["policies"][0]["name"] == "greedy"
    assert str(page) in err
    assert "greedy" in page.read_text()


def test_a_page_that_cannot_be_written_is_said_before_the_work(orchestrate, files, tmp_path):
    spec, traces = files
    code, out, err = orchestrate(
        *("simulate", spec, "--traces", traces, "--work", "2h", "--plot", tmp_path / "no" / "page"),
    )
    assert (code, out) == (2, "")
    assert "no such folder" in err
