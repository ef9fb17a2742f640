"""`orchestrate simulate`: what policies would have cost on recorded or made-up markets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import (
    check_page,
    examples,
    json_option,
    print_json,
    say,
    set_option,
    write_page,
)
from orchestrator.cli.simulated_market import (
    SYNTHETIC,
    inverted_option,
    on_demand_price_option,
    read_market,
    spot_price_option,
    traces_option,
)
from orchestrator.cli.simulating import (
    bar,
    in_hours,
    read_gigabytes,
    read_hours,
    show_progress,
    terms_document,
)
from orchestrator.cli.what_if import (
    ask,
    first_text,
    print_answers,
    read_choices,
    read_varied,
    what_if_document,
)
from orchestrator.policy.sight import PolicyName

if TYPE_CHECKING:
    from orchestrator.simulate.study import Summary
    from orchestrator.simulate.terms import Terms
    from orchestrator.simulate.what_if import Answer, Question
    from orchestrator.spec import RunSpec

POLICY_NAMES = tuple(name.value for name in PolicyName)
_BAR_WIDTH = 12
# As nodes.count of a spec; and of starts what a machine with some cores does in an hour.
_MOST_NODES, _MOST_STARTS = 1024, 10_000


@click.command(
    epilog=examples(
        "orchestrate simulate run.yaml",
        "orchestrate simulate run.yaml --traces market/ --work 48h --plot policies.html",
        "orchestrate simulate run.yaml --what-if deadline=24h,48h",
    )
)
@click.argument("spec", type=click.Path(path_type=Path, dir_okay=False))
@traces_option
@inverted_option
@spot_price_option
@on_demand_price_option
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice(POLICY_NAMES),
    help="May be repeated. Default: all of them; with --what-if auto.",
)
@click.option(
    "--starts",
    type=click.IntRange(1, _MOST_STARTS),
    default=50,
    show_default=True,
    metavar="N",
    help="Instants of the market at which the job starts.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the starts, and of what is made up."
)
@click.option(
    "--work", metavar="TIME", help="Training without interruptions. Default: what plan assumes."
)
@click.option("--deadline", metavar="TIME", help="Default: limits.deadline of the spec.")
@click.option(
    "--restart",
    metavar="TIME",
    default="10min",
    show_default=True,
    help="From a launch to the first new step.",
)
@click.option(
    "--state", metavar="SIZE", help="What moves between regions. Default: what plan assumes."
)
@click.option(
    "--nodes", type=click.IntRange(1, _MOST_NODES), metavar="N", help="Default: nodes.count."
)
@click.option(
    "--lost-work",
    metavar="TIME",
    default="0s",
    show_default=True,
    help="Most that a preemption takes back.",
)
@click.option(
    "--observe",
    type=click.Choice(["free", "launches"]),
    default="free",
    show_default=True,
    help="What a policy sees: every zone, or its own launches.",
)
@click.option(
    "--failed-launch",
    metavar="TIME",
    default="2min",
    show_default=True,
    help="What a launch that finds no room takes.",
)
@click.option(
    "--billing",
    type=click.Choice(["plain", "provider"]),
    default="plain",
    show_default=True,
    help="Price times time, or the provider's rules as well.",
)
@click.option(
    "--what-if",
    "what_if",
    multiple=True,
    metavar="KEY=V1,V2",
    help="Ask for each value of deadline, work, restart, state, nodes, interval, regions, zones "
    "or gpu; may be given twice.",
)
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write one self-contained HTML page with charts as well.",
)
@set_option
@json_option
def simulate(
    spec: Path,
    traces: Path | None,
    policies: tuple[str, ...],
    starts: int,
    nodes: int | None,
    what_if: tuple[str, ...],
    plot: Path | None,
    overrides: tuple[str, ...],
    *,
    as_json: bool,
    **texts: Any,  # noqa: ANN401  # as click parsed them
) -> None:
    """Replay a market under each policy, and compare with the least possible cost.

    Every policy gets the same starts. `optimal` knows all of the market beforehand. Without
    --traces the market is synthetic: the spec's offers and prices, with room that comes and goes.
    """
    from orchestrator.simulate.what_if import Question
    from orchestrator.simulate.zone_trace import num_gpus_of
    from orchestrator.spec_file import load_spec
    from orchestrator.weather import usual_pace

    run = load_spec(spec, overrides)
    varied = read_varied(what_if)
    choices = read_choices(varied, traces)
    texts |= {key: texts[key] or first_text(varied, key) for key in ("work", "deadline")}
    terms, num_nodes = _terms(texts, run), nodes or run.nodes.count
    zones = read_market(run, traces, texts, terms, num_nodes)
    terms = replace(terms, pace=usual_pace(num_gpus_of(zones) or run.nodes.num_gpus))
    record = SYNTHETIC if traces is None else str(traces)
    question = Question(record=record, traces=zones, num_nodes=num_nodes, terms=terms)
    if plot is not None:
        check_page(plot)
    if varied:
        answers = ask(
            question, choices, tuple(dict.fromkeys(policies)) or ("auto",), starts, texts["seed"]
        )
    else:
        answers = _compare(
            question, tuple(dict.fromkeys(policies)) or POLICY_NAMES, starts, texts["seed"]
        )
    if as_json:
        found = {"what_if": what_if_document(answers, varied)} if varied else _document(answers)
        source = {"traces": traces and str(traces), "synthetic": traces is None}
        print_json({"schema_version": 1, **source, **found})
    elif varied:
        print_answers(answers, varied)
    else:
        _print(answers)
    if traces is None and not as_json:
        click.echo(
            f"The market is synthetic: room in {len(zones)} zones at the spec's prices is made up "
            f"(seed {texts['seed']}). Recorded ones: --traces."
        )
    if plot is not None:
        _plot(plot, run.name, question, answers)


def _compare(question: Question, policies: Sequence[str], starts: int, seed: int) -> list[Answer]:
    """Return what each policy makes of one question."""
    from orchestrator.simulate.market import make_market
    from orchestrator.simulate.study import draw_starts, study
    from orchestrator.simulate.what_if import Case, answer

    market = make_market(question.traces, question.num_nodes)
    at = draw_starts(market, question.terms, starts, seed)
    running = study(market, at, question.terms, policies)
    outcomes = list(show_progress(running, len(at), "Simulating"))
    case = Case(values=(), question=question, market=market, starts=tuple(at))
    return answer(case, outcomes, policies)


def _plot(path: Path, name: str, question: Question, answers: list[Answer]) -> None:
    # jinja2 is an extra, and costs 70 ms.
    from orchestrator.dashboard.simulation import render_simulation

    write_page(path, render_simulation(name, question, answers))
    say(f"Wrote the page to {path} ({path.stat().st_size // 1024} kB).")


def _terms(texts: dict[str, Any], run: RunSpec) -> Terms:
    from orchestrator.simulate.terms import Billing, Observe, Terms
    from orchestrator.workload import assumed_workload, checkpoint_bytes

    deadline, workload = run.limits.deadline, assumed_workload(run)
    if texts["work"] is None and workload is None:
        raise click.UsageError("Say how much there is to train: --work 48h.")
    if texts["deadline"] is not None:
        until = read_hours("--deadline", texts["deadline"])
    elif deadline is not None:
        until = in_hours(deadline)
    else:
        raise click.UsageError("The spec has no limits.deadline: give one with --deadline 60h.")
    return Terms(
        work=in_hours(workload.productive)
        if workload is not None and texts["work"] is None
        else read_hours("--work", texts["work"]),
        deadline=until,
        restart=read_hours("--restart", texts["restart"]),
        state_gb=(checkpoint_bytes(run) or 0) / 1e9
        if texts["state"] is None
        else read_gigabytes("--state", texts["state"]),
        lost_work=read_hours("--lost-work", texts["lost_work"], least=0),
        failed_launch=read_hours("--failed-launch", texts["failed_launch"], least=0),
        observe=Observe(texts["observe"]),
        billing=Billing(texts["billing"]),
    )


def _document(answers: list[Answer]) -> dict[str, Any]:
    return {
        "terms": terms_document(answers[0].case.question.terms),
        # The least that is possible by price times time, whatever the billing of the policies.
        "optimal": {
            "mean_usd": answers[0].optimal_usd,
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
            for one in _summaries(answers)
        ],
        "jobs": [
            {
                "start": outcome.start,
                "optimal_usd": outcome.optimal_usd,
                "usd": {name: ended.bill.usd for name, ended in outcome.ended.items()},
            }
            for outcome in answers[0].outcomes
        ],
    }


def _summaries(answers: list[Answer]) -> list[Summary]:
    return [one.summary for one in answers if one.summary is not None]


def _print(answers: list[Answer]) -> None:
    from rich.console import Console  # 60 ms
    from rich.table import Table

    columns = ("policy", "mean cost", "USD", "x optimal (95 %)", "missed", "losses", "wait")
    table = Table(*columns, box=None)
    summaries = _summaries(answers)
    most = max(one.mean_usd for one in summaries)
    optimal = answers[0].optimal_usd or 0.0
    table.add_row("optimal", bar(optimal, most, _BAR_WIDTH), f"{optimal:,.2f}", "1.000")
    for one in sorted(summaries, key=lambda one: one.mean_usd):
        table.add_row(
            one.name,
            bar(one.mean_usd, most, _BAR_WIDTH),
            f"{one.mean_usd:,.2f}",
            f"{one.cost_vs_optimal:.3f} ({one.interval[0]:.3f}-{one.interval[1]:.3f})",
            f"{one.num_missed}/{one.num_jobs}",
            f"{one.mean_preemptions:.1f}",
            f"{one.mean_waiting_hours:.1f} h",
        )
    Console().print(table)
