"""What `plan` says of cost and time, and what it refuses because no luck can make it true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.orchestrator.simulate.markets import zone

EXAMPLES = Path(__file__).parents[2] / "examples"
SPEC = EXAMPLES / "vicuna-7b.yaml"


def plan(orchestrate, *options, spec=SPEC):
    return orchestrate("plan", spec, "--offline", *options)


def write_traces(folder, *zones):
    folder.mkdir()
    for one in zones:
        (folder / f"{one.zone}.json").write_text(one.model_dump_json())
    return folder


def test_plan_shows_percentiles_and_chances_twice_alike(orchestrate):
    code, out, err = plan(orchestrate, "--json")
    assert code == 0, err
    found = json.loads(out)["forecast"]
    for what in ("hours", "usd"):
        assert list(found[what]) == ["p10", "p50", "p90"]
        assert found[what]["p10"] <= found[what]["p50"] <= found[what]["p90"]
    chances = [found[f"chance_{what}"] for what in ("over_budget", "unfinished", "late")]
    assert chances == sorted(chances)
    assert found["num_plays"] >= 20
    assert any("made-up market" in line for line in found["assumptions"])
    _, again, _ = plan(orchestrate, "--json")
    assert json.loads(again)["forecast"] == found


def test_plan_says_it_in_words(orchestrate):
    _, out, _ = plan(orchestrate)
    assert "(p10 / p50 / p90)" in out
    assert "later than 30h00m: " in out
    assert "over the budget of $250: " in out
    assert "Warning" not in out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            ("limits.deadline=5h",),
            "limits.deadline: 5.0 h is less than the 5.8 h that the run needs",
        ),
        (
            ("limits.deadline=5h", "limits.market=on_demand"),
            "limits.deadline: 5.0 h is less than the 5.8 h that the run needs",
        ),
        (
            ("limits.deadline=5h", "limits.market=spot"),
            "limits.deadline: 5.0 h is less than the 5.6 h that the run needs",
        ),
        (("limits.budget_usd=41",), "limits.budget_usd: $41 is less than the $41.65"),
    ],
)
def test_what_cannot_be_is_refused_with_its_numbers(orchestrate, changes, says):
    options = [option for change in changes for option in ("--set", change)]
    code, out, err = plan(orchestrate, *options)
    assert code == 2
    assert not out
    assert says in err
    assert "Set limits." in err


def test_launch_refuses_it_before_it_prepares_anything(orchestrate):
    """The example's data does not exist: that would be the next error."""
    code, _, err = orchestrate("launch", SPEC, "--yes", "--set", "limits.deadline=5h")
    assert code == 2
    assert "limits.deadline: 5.0 h is less than the 5.8 h" in err


def test_the_least_deadline_it_names_is_planned_and_kept(orchestrate):
    _, _, err = plan(orchestrate, "--set", "limits.deadline=5h")
    (least,) = re.findall(r"Set limits.deadline to (\d+)min", err)
    options = ("--set", "limits.budget_usd=5000", "--set")
    code, out, _ = plan(orchestrate, *options, f"limits.deadline={least}min", "--json")
    assert code == 0
    assert json.loads(out)["forecast"]["chance_late"] == 0
    code, _, _ = plan(orchestrate, *options, f"limits.deadline={int(least) - 1}min")
    assert code == 2


def test_a_budget_that_on_demand_exceeds_is_warned_of(orchestrate):
    options = ("--set", "limits.budget_usd=50")
    code, out, _ = plan(orchestrate, *options)
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("Warning")]
    assert "on demand alone the run would cost $1" in line
    assert "stop at $50" in line


def test_on_demand_is_the_same_at_every_percentile(orchestrate):
    options = ("--set", "limits.market=on_demand", "--set", "infra=[aws]")
    _, out, _ = plan(orchestrate, *options, "--json")
    found = json.loads(out)["forecast"]
    assert found["usd"]["p10"] == found["usd"]["p90"]
    assert found["hours"]["p10"] == found["hours"]["p90"] == pytest.approx(5.2 + 0.4, abs=0.2)


def test_the_forecast_is_from_traces_where_there_are_any(orchestrate, tmp_path):
    always = zone("z", "1" * 288, region="us-east-1", spot=5.0, on_demand=30.0)
    traces = write_traces(tmp_path / "traces", always)
    code, out, err = plan(orchestrate, "--traces", traces, "--json")
    assert code == 0, err
    found = json.loads(out)["forecast"]
    # 5.2 h with their saves and a start, at the trace's price.
    assert found["usd"]["p50"] == pytest.approx(5 * found["hours"]["p50"], rel=0.01)
    assert found["hours"]["p50"] == pytest.approx(5.6, abs=0.1)
    assert any("goes on as in its record" in line for line in found["assumptions"])


def test_traces_of_hours_are_refused(orchestrate, tmp_path):
    traces = write_traces(tmp_path / "traces", zone("z", "1" * 100))
    code, _, err = plan(orchestrate, "--traces", traces)
    assert code == 2
    assert "too short for a forecast" in err
