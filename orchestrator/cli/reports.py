"""`orchestrate status`, `cost` and `logs`: what a run folder says."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import Any

import click

from checkpoints.layout import LOGS, parse_log_key
from checkpoints.store import ObjectStore
from orchestrator.cli.common import (
    json_option,
    print_json,
    say,
    store_option,
)
from orchestrator.clock import SystemClock, show_duration
from orchestrator.cost import budget_told
from orchestrator.errors import UnknownRun
from orchestrator.glance import Glance, glance_at
from orchestrator.report import (
    RunStateName,
    cost_document,
    describe_evaluations,
    describe_progress,
    missed_by,
    state_name,
    status_document,
)
from orchestrator.runs import KnownRun, find_run, list_runs
from orchestrator.view import RunView, RunViewer

_FOLLOW_EVERY_S = 1.0
_BAR_WIDTH = 30


@click.command()
@click.argument("run", required=False)
@store_option
@json_option
def status(run: str | None, store: str | None, *, as_json: bool) -> None:
    """Show how RUN is doing; without RUN, every run that is known."""
    if run is None:
        _status_of_all(list_runs(store), as_json=as_json)
        return
    view = look(find_run(run, store))
    if as_json:
        print_json(status_document(view))
    else:
        print(render_status(view))


@click.command()
@click.argument("run", required=False)
@store_option
@json_option
def cost(run: str | None, store: str | None, *, as_json: bool) -> None:
    """Show what RUN cost and where its time went; without RUN, one line per run."""
    if run is not None:
        view = look(find_run(run, store))
        if as_json:
            print_json(cost_document(view))
        else:
            print(render_cost(view))
        return
    seen = glance_at(list_runs(store), SystemClock().now())
    documents = [one.cost() for one in seen if isinstance(one, Glance)]
    if as_json:
        print_json({"schema_version": 1, "runs": documents})
        return
    for document in documents:
        print(f"{document['run']:<24}{document['state']:<12}{_money(document)}")
    if not documents:
        say("No runs yet. Start one: orchestrate launch examples/quickstart.yaml")


@click.command()
@click.argument("run")
@click.option("--attempt", type=int, help="Only this attempt.")
@click.option("--node", type=int, help="Only this node of each attempt; 0 is the head.")
@click.option(
    "-f",
    "--follow",
    is_flag=True,
    help="Go on printing until the run is over, or nobody reports on it.",
)
@store_option
def logs(
    run: str, attempt: int | None, node: int | None, store: str | None, *, follow: bool
) -> None:
    """Print the log of RUN, attempt by attempt and node by node."""
    known = find_run(run, store)
    folder, viewer = known.open(), RunViewer(known.open())
    printed: list[str] = []
    while True:
        view = viewer.look(SystemClock().now())
        is_over = view.state.ended is not None or state_name(view) is RunStateName.UNKNOWN
        _print_new_logs(folder, (attempt, node), printed)
        if not follow or is_over:
            break
        time.sleep(_FOLLOW_EVERY_S)
    if not printed and (attempt, node) != (None, None):
        named = {"attempt": attempt, "node": node}
        which = ", ".join(f"{name} {one}" for name, one in named.items() if one is not None)
        raise UnknownRun(f"{run} has no log of {which}.", f"See orchestrate status {run}")
    if not printed:
        say(f"{run} has no log yet. See orchestrate status {run}")


def render_status(view: RunView) -> str:
    """Return a run's status as people read it."""
    document = status_document(view)
    lines = [describe_progress(view)]
    if document["why"]:
        lines.append(f"Ended because {document['why']}.")
    else:
        lines += _latest_lines(document)
    if told := budget_told(view.parts.total, view.state.spec.limits.budget_usd):
        lines.append(f"{told[-1]:.0%} of the budget is used")
    commit = f"last commit step {document['last_commit_step']}"
    lines.append(
        f"{commit} · {document['num_preemptions']} preemptions · goodput {document['goodput']:.0%}"
    )
    evaluations = describe_evaluations(view)
    if evaluations is not None:
        lines.append(evaluations)
    replay = document["replay"]
    if replay["steps"]:
        verdict = "all equal" if not replay["differing"] else f"differ: {replay['differing']}"
        lines.append(
            f"{replay['steps']} replayed steps compared with their recorded values: {verdict}"
        )
    late = missed_by(view)
    if late is not None:
        lines.append(f"deadline missed by {show_duration(late)} (wall time)")
    elif document["deadline_at"] is not None and view.state.ended is None:
        lines.append(f"deadline {_moment(document['deadline_at'])}")
    if document["eta_at"] is not None:
        lines.append(f"done about {_moment(document['eta_at'])}")
    if document["forecast"] is not None:
        lines.append(f"forecast of it all, by now: {_show_percentiles(document['forecast'])}")
    return "\n".join([*lines, "", *_attempt_lines(document["attempts"]), "", _next_command(view)])


def _latest_lines(document: dict[str, Any]) -> list[str]:
    """Return what was decided last, and the latest launch since that came to nothing."""
    decision, vain = document["last_decision"], document["vain_launches"]
    if decision is None:
        return []
    until = "" if decision["until"] is None else f", until {_moment(decision['until'])}"
    lines = [f"Decided to {decision['action']}: {decision['why']}{until}"]
    running = document["attempts"] and document["attempts"][-1]["ended_at"] is None
    if vain and not running:
        latest = vain[-1]
        place = f"{latest['cloud']} {latest['region']} {latest['zone']} {latest['market']}"
        detail = f" ({latest['detail']})" if latest["detail"] else ""
        lines.append(f"Last tried in vain: {place}: {latest['end_reason']}{detail}")
    return lines


def render_cost(view: RunView) -> str:
    """Return a run's bill as people read it."""
    document = cost_document(view)
    lines = [f"{document['run']} {document['state']}: {_money(document)}"]
    if document["savings_fraction"] is not None:
        saved = document["savings_fraction"]
        verdict = f"{saved:.0%} saved" if saved >= 0 else f"{-saved:.0%} more than that"
        lines.append(
            f"On demand, without preemptions: ${document['on_demand_usd']:.2f} ({verdict})"
        )
    if document["usd_per_thousand_steps"] is not None:
        lines.append(
            f"${document['usd_per_thousand_steps']:.2f} per 1,000 steps, "
            f"${document['usd_per_million_tokens']:.2f} per million tokens"
        )
    if document["forecast"] is not None:
        lines += _predicted_lines(document)
    lines += ["", *_bars(document["parts"], "${:.4f}"), "", "Where the time went:"]
    lines += _bars(document["seconds"], "{:.1f} s")
    goodput = document["goodput"]
    lines.append(f"goodput {goodput['wall']:.0%} of wall time, {goodput['billed']:.0%} of billed")
    return "\n".join([*lines, "", *_attempt_lines(document["attempts"])])


def _predicted_lines(document: dict[str, Any]) -> list[str]:
    """Return what was forecast at the launch, and how what came compares with it."""
    forecast, usd, hours = document["forecast"], document["total_usd"], document["market_hours"]
    lines = [f"Forecast at launch: {_show_percentiles(forecast)}"]
    if document["state"] != RunStateName.SUCCEEDED.value:
        return [*lines, f"So far: {hours:.1f} h and ${usd:.2f}"]
    verdicts = [
        f"{text} ({_compared(actual, forecast[what])})"
        for what, text, actual in (
            ("hours", f"{hours:.1f} h", hours),
            ("usd", f"${usd:.2f}", usd),
        )
    ]
    return [*lines, f"It took {' and '.join(verdicts)}"]


def _compared(actual: float, predicted: dict[str, float | None]) -> str:
    low, middle, high = predicted["p10"], predicted["p50"], predicted["p90"]
    if low is not None and actual < low:
        where = "below p10"
    elif high is not None and actual > high:
        where = "above p90"
    else:
        where = "within p10 to p90"
    return where if not middle else f"{actual / middle - 1:+.0%} of p50, {where}"


def _show_percentiles(found: dict[str, Any]) -> str:
    hours = " / ".join(
        "unfinished" if one is None else f"{one:.1f}" for one in _values(found, "hours")
    )
    usd = " / ".join("?" if one is None else f"${one:.2f}" for one in _values(found, "usd"))
    return f"{hours} h and {usd} (p10 / p50 / p90)"


def _values(found: dict[str, Any], what: str) -> list[float | None]:
    return [found[what][share] for share in ("p10", "p50", "p90")]


def _bars(amounts: dict[str, float], style: str) -> list[str]:
    most = max(amounts.values(), default=0.0) or 1.0
    return [
        f"  {name:<17}{style.format(amount):>14}  {'█' * round(_BAR_WIDTH * amount / most)}"
        for name, amount in amounts.items()
    ]


def _attempt_lines(attempts: list[dict[str, Any]]) -> list[str]:
    if not attempts:
        return ["No attempt yet."]
    header = f"{'attempt':<9}{'where':<38}{'market':<11}{'from step':>9}{'usd':>10}  end"
    rows = [
        f"{row['attempt']:<9}{row['cloud'] + ' ' + row['region'] + ' ' + row['zone']:<38}"
        f"{row['market']:<11}{row['resumed_step'] or 0:>9}{row['usd']:>10.2f}  "
        f"{row['end_reason'] or 'running'}{' (' + row['detail'] + ')' if row['detail'] else ''}"
        for row in attempts
    ]
    return [header, *rows]


def _next_command(view: RunView) -> str:
    name = view.record.run
    if state_name(view) is RunStateName.SUCCEEDED:
        return f"Next: orchestrate cost {name} · orchestrate dashboard {name} --export {name}.html"
    if view.state.ended is not None:
        return f"Next: orchestrate resume {name} · orchestrate logs {name}"
    if state_name(view) is RunStateName.UNKNOWN:
        return f"Nobody reports on it. Pick it up: orchestrate resume {name}"
    return f"Next: orchestrate logs {name} -f · orchestrate stop {name}"


def _money(document: dict[str, Any]) -> str:
    note = f" (simulated, 1 s counts as {document['time_scale']:g} s)"
    return f"${document['total_usd']:.2f}{note if document['simulated'] else ''}"


def _moment(instant: str) -> str:
    moment = datetime.fromisoformat(instant)
    left = moment - SystemClock().now()
    when = f"in {show_duration(left)}" if left.total_seconds() > 0 else "passed"
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S} ({when})"


def look(known: KnownRun) -> RunView:
    """Return a run as it is now; raises UnknownRun if its store does not hold it."""
    return RunViewer(known.open()).look(SystemClock().now())


def _status_of_all(runs: list[KnownRun], *, as_json: bool) -> None:
    seen = glance_at(runs, SystemClock().now())
    if as_json:
        documents = [
            one.status()
            if isinstance(one, Glance)
            else {"run": one.run, "state": RunStateName.UNKNOWN.value, "why": one.why}
            for one in seen
        ]
        print_json({"schema_version": 1, "runs": documents})
        return
    for one in seen:
        print(f"{one.run:<24}{one.line if isinstance(one, Glance) else f'UNKNOWN · {one.why}'}")
    if not seen:
        say("No runs yet. Start one: orchestrate launch examples/quickstart.yaml")


def _print_new_logs(
    store: ObjectStore, wanted: tuple[int | None, int | None], printed: list[str]
) -> None:
    """Print what is new of the wanted attempt and node, each piece below whose words it holds."""
    for entry in store.list(LOGS):
        source = parse_log_key(entry.key)
        if source is None or entry.key in printed:
            continue
        if any(one not in (None, found) for one, found in zip(wanted, source, strict=True)):
            continue
        if not printed or parse_log_key(printed[-1]) != source:
            attempt, node = source
            print(f"--- attempt {attempt}{f', node {node}' if node else ''} ---")
        printed.append(entry.key)
        sys.stdout.write(store.get(entry.key).data.decode(errors="replace"))
        sys.stdout.flush()
