"""The texts of `orchestrate status` and `cost`, as people read them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from orchestrator.cli.reconciling import reconciliation_lines
from orchestrator.clock import SystemClock, show_duration
from orchestrator.comparison import compare
from orchestrator.cost import budget_told
from orchestrator.report import (
    cost_document,
    describe_evaluations,
    describe_progress,
    status_document,
)
from orchestrator.standing import RunStateName, missed_by, state_name
from orchestrator.view import RunView

_BAR_WIDTH = 30


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
    lines = [f"{document['run']} {document['state']}: {money(document)}"]
    if document["savings_fraction"] is not None:
        saved = document["savings_fraction"]
        verdict = f"{saved:.0%} saved" if saved >= 0 else f"{-saved:.0%} more than that"
        lines.append(
            f"On demand, without preemptions: ${document['on_demand_usd']:.2f} ({verdict})"
        )
    if document["usd_per_thousand_steps"] is not None:
        per_tokens = document["usd_per_million_tokens"]
        more = "" if per_tokens is None else f", ${per_tokens:.2f} per million tokens"
        lines.append(f"${document['usd_per_thousand_steps']:.2f} per 1,000 steps{more}")
    if document["forecast"] is not None:
        lines += _predicted_lines(document)
    lines += ["", *_bars(document["parts"], "${:.4f}"), *_basis_lines(document)]
    lines += ["", "What the nodes were paid for:", *_bars(document["compute_by_bucket"], "${:.4f}")]
    lines += ["", "Where the time went:"]
    lines += _bars(document["seconds"], "{:.1f} s")
    goodput = document["goodput"]
    lines.append(f"goodput {goodput['wall']:.0%} of wall time, {goodput['billed']:.0%} of billed")
    lines += ["", *_attempt_lines(document["attempts"])]
    if document["storage_usd_per_day"]:
        lines += ["", _storage_line(document)]
    lines += _serving_lines(document)
    return "\n".join([*lines, *reconciliation_lines(document["reconciliation"])])


def _basis_lines(document: dict[str, Any]) -> list[str]:
    """Say by which kind of prices the total is, and what clouds did not charge."""
    shares = [f"${usd:.4f} {name}" for name, usd in document["basis"].items() if usd]
    lines = [f"  of which {', '.join(shares)}"] if shares else []
    if document["waived_usd"]:
        lines.append(f"  not charged for nodes taken back early: ${document['waived_usd']:.4f}")
    return lines


def _serving_lines(document: dict[str, Any]) -> list[str]:
    """Return what it cost to serve the model, beside the training; nothing if it never was."""
    serving = document["serving"]
    if not serving["replicas"]:
        return []
    in_all = document["lifetime_usd"]
    together = "" if in_all is None else f"; with the training ${in_all:.2f}"
    spot = serving["usd_by_market"]["spot"]
    return [
        "",
        f"Serving it: ${serving['usd']:.2f}, of which ${spot:.2f} for spot nodes{together}",
        f"  the same hours on demand: ${serving['on_demand_usd']:.2f}",
        *(
            f"  {row['replica']:<28}{row['cloud'] + ' ' + row['zone']:<26}{row['market']:<11}"
            f"{row['hours']:>8.2f} h{row['usd']:>10.2f}  {row['end_reason'] or 'serving'}"
            for row in serving["replicas"]
        ),
    ]


def _storage_line(document: dict[str, Any]) -> str:
    usd, run = document["storage_usd_per_day"], document["run"]
    return f"Checkpoints that are kept cost ${usd:.4f} a day. End that: orchestrate delete {run}"


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


def money(document: dict[str, Any]) -> str:
    """Return what a run has cost, and that it was simulated where it was."""
    note = f" (simulated, 1 s counts as {document['time_scale']:g} s)"
    return f"${document['total_usd']:.2f}{note if document['simulated'] else ''}"


def _moment(instant: str) -> str:
    moment = datetime.fromisoformat(instant)
    left = moment - SystemClock().now()
    when = f"in {show_duration(left)}" if left.total_seconds() > 0 else "passed"
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S} ({when})"


def side_by_side(views: list[RunView]) -> str:
    """Return a table of several runs, a column each."""
    names = [view.record.run for view in views]
    rows = compare([(cost_document(view), status_document(view)) for view in views])
    texts = [("", names), *((name, [value or "-" for value in values]) for name, values in rows)]
    widths = [max(len(values[place]) for _, values in texts) + 2 for place in range(len(views))]
    return "\n".join(
        f"{name:<24}"
        + "".join(f"{value:>{width}}" for value, width in zip(values, widths, strict=True))
        for name, values in texts
    )
