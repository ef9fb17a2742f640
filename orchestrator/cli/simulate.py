"""`orchestrate simulate`: what policies would have cost on recorded markets."""

from __future__ import annotations

import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import json_option, print_json, set_option

if TYPE_CHECKING:
    from orchestrator.simulate.job import Terms
    from orchestrator.simulate.study import Outcome, Summary

POLICY_NAMES = ("on_demand", "greedy", "uniform_progress", "auto")
_BAR_WIDTH = 12


@click.command()
@click.argument("spec", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--traces",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="One JSON file per zone; a folder is one market.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice(POLICY_NAMES),
    help="May be repeated. Default: all of them.",
)
@click.option("--starts", type=click.IntRange(min=1), default=50, show_default=True, metavar="N")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the starts.")
@click.option("--work", metavar="TIME", help="Training without interruptions, as in 48h.")
@click.option("--deadline", metavar="TIME", help="Default: limits.deadline of the spec.")
@click.option("--restart", metavar="TIME", default="10min", show_default=True)
@click.option("--state", metavar="SIZE", default="0GB", help="What moves between regions.")
@click.option("--nodes", type=click.IntRange(min=1), metavar="N", help="Default: nodes.count.")
@click.option(
    "--lost-work", metavar="TIME", default="0s", help="Most that a preemption takes back."
)
@click.option(
    "--observe",
    type=click.Choice(["free", "launches"]),
    default="free",
    show_default=True,
    help="What a policy sees: every zone, or its own launches.",
)
@click.option(
    "--failed-launch", metavar="TIME", default="2min", help="Of a launch that finds no room."
)
@click.option(
    "--billing",
    type=click.Choice(["plain", "provider"]),
    default="plain",
    show_default=True,
    help="Price times time, or the provider's rules as well.",
)
@set_option
@json_option
def simulate(
    spec: Path,
    traces: Path,
    policies: tuple[str, ...],
    starts: int,
    seed: int,
    nodes: int | None,
    overrides: tuple[str, ...],
    *,
    as_json: bool,
    **texts: Any,  # noqa: ANN401  # as click parsed them
) -> None:
    """Replay recorded markets under each policy, and compare with the least possible cost.

    Every policy gets the same starts. `optimal` knows all of the market beforehand.
    """
    from rich.console import Console  # 60 ms
    from rich.progress import track

    from orchestrator.simulate.market import make_market
    from orchestrator.simulate.study import draw_starts, study, summarize
    from orchestrator.simulate.traces import read_traces
    from orchestrator.spec_file import load_spec

    run = load_spec(spec, overrides)
    terms = _terms(texts, run.limits.deadline)
    market = make_market(read_traces(traces), nodes or run.nodes.count)
    chosen = policies or POLICY_NAMES
    at = draw_starts(market, terms, starts, seed)
    outcomes = list(
        track(
            study(market, at, terms, chosen),
            description="Simulating",
            total=len(at),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
    )
    summaries = [summarize(name, outcomes, market, terms) for name in chosen]
    if as_json:
        print_json(_document(summaries, outcomes, terms, traces))
        return
    _print(summaries, outcomes)


def _terms(texts: dict[str, Any], deadline: timedelta | None) -> Terms:
    from orchestrator.simulate.job import Billing, Observe, Terms

    if texts["work"] is None:
        raise click.UsageError("Say how much there is to train: --work 48h.")
    if texts["deadline"] is None and deadline is None:
        raise click.UsageError("The spec has no limits.deadline: give one with --deadline 60h.")
    wanted = deadline if texts["deadline"] is None else _time("--deadline", texts["deadline"])
    assert wanted is not None
    return Terms(
        work=_hours(_time("--work", texts["work"])),
        deadline=_hours(wanted),
        restart=_hours(_time("--restart", texts["restart"])),
        state_gb=_gigabytes(texts["state"]),
        lost_work=_hours(_time("--lost-work", texts["lost_work"], least=0)),
        failed_launch=_hours(_time("--failed-launch", texts["failed_launch"], least=0)),
        observe=Observe(texts["observe"]),
        billing=Billing(texts["billing"]),
    )


def _time(option: str, text: str, least: float = 1) -> timedelta:
    """Parse a time; raises UsageError for one that is none, or shorter than `least` seconds."""
    from orchestrator.spec import parse_duration

    try:
        found = timedelta() if re.fullmatch(r"0(s|min|h)?", text) else parse_duration(text)
    except (ValueError, OverflowError) as error:
        raise click.UsageError(f"{option} {text}: {error}.") from error
    if found.total_seconds() < least:
        raise click.UsageError(f"{option} {text} is too short.")
    return found


def _hours(time: timedelta) -> float:
    return time / timedelta(hours=1)


def _gigabytes(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?(GB|TB|MB)", text)
    if found is None:
        raise click.UsageError(f"--state {text} is no size: write 156GB, 1.5TB or 300MB.")
    return float(found[1]) * {"MB": 1e-3, "GB": 1.0, "TB": 1e3}[found[2]]


def _document(
    summaries: list[Summary], outcomes: list[Outcome], terms: Terms, traces: Path
) -> dict[str, Any]:
    from statistics import mean

    return {
        "schema_version": 1,
        "traces": str(traces),
        "terms": {
            "work_hours": terms.work,
            "deadline_hours": terms.deadline,
            "restart_hours": terms.restart,
            "state_gb": terms.state_gb,
            "lost_work_hours": terms.lost_work,
            "failed_launch_hours": terms.failed_launch,
            "observe": terms.observe.value,
            "billing": terms.billing.value,
        },
        # The least that is possible by price times time, whatever the billing of the policies.
        "optimal": {
            "mean_usd": mean(outcome.optimal_usd for outcome in outcomes),
            "billing": "plain",
        },
        "policies": [
            {
                "name": one.name,
                "jobs": one.num_jobs,
                "missed_deadlines": one.num_missed,
                "mean_usd": one.mean_usd,
                "usd": one.usd._asdict(),
                "hours": one.hours._asdict(),
                "mean_cost_vs_optimal": one.cost_vs_optimal,
                "mean_cost_vs_on_demand": one.cost_vs_on_demand,
                "ci95": list(one.interval),
                "mean_preemptions": one.mean_preemptions,
                "mean_launches": one.mean_launches,
                "mean_on_demand_hours": one.mean_on_demand_hours,
                "mean_waiting_hours": one.mean_waiting_hours,
                "mean_moves_usd": one.mean_moves_usd,
            }
            for one in summaries
        ],
        "jobs": [
            {
                "start": outcome.start,
                "optimal_usd": outcome.optimal_usd,
                "usd": {name: ended.bill.usd for name, ended in outcome.ended.items()},
            }
            for outcome in outcomes
        ],
    }


def _print(summaries: list[Summary], outcomes: list[Outcome]) -> None:
    from statistics import mean

    from rich.console import Console  # 60 ms
    from rich.table import Table

    columns = ("policy", "mean cost", "USD", "x optimal (95 %)", "missed", "losses", "wait")
    table = Table(*columns, box=None)
    most = max(one.mean_usd for one in summaries)
    optimal = mean(outcome.optimal_usd for outcome in outcomes)
    table.add_row("optimal", _bar(optimal, most), f"{optimal:,.2f}", "1.000")
    for one in sorted(summaries, key=lambda one: one.mean_usd):
        table.add_row(
            one.name,
            _bar(one.mean_usd, most),
            f"{one.mean_usd:,.2f}",
            f"{one.cost_vs_optimal:.3f} ({one.interval[0]:.3f}-{one.interval[1]:.3f})",
            f"{one.num_missed}/{one.num_jobs}",
            f"{one.mean_preemptions:.1f}",
            f"{one.mean_waiting_hours:.1f} h",
        )
    Console().print(table)


def _bar(usd: float, most: float) -> str:
    return "\u2588" * max(1, round(_BAR_WIDTH * usd / most))
