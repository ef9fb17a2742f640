"""The head of the page: what state the run is in, and the numbers that matter first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from orchestrator.dashboard.charts import place
from orchestrator.dashboard.formats import (
    NOTHING,
    write_duration,
    write_instant,
    write_number,
    write_saving,
    write_share,
    write_usd,
)
from orchestrator.dashboard.sources import Sources
from orchestrator.standing import RunStateName

# From here on the budget bar warns; the policy itself stops the run before the whole is spent.
_BUDGET_WARNING = 0.8
_NUM_STEPS_NAMED = 20


class Tone(str, Enum):
    """How a number reads: as it should, or not."""

    PLAIN = "plain"
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something that must not be overlooked."""

    tone: Tone
    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Name, state and instant."""

    run: str
    state: str
    symbol: str
    tone: Tone
    meaning: str
    as_of: str
    simulation: str | None
    alerts: tuple[Alert, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Indicator:
    """One number with its context; `meter` is a filled share in percent."""

    label: str
    value: str
    detail: str
    definition: str
    tone: Tone = Tone.PLAIN
    meter: float | None = None


# Symbol, tone and plain words of each state: never colour alone.
STATES: dict[RunStateName, tuple[str, Tone, str]] = {
    RunStateName.PENDING: ("◌", Tone.PLAIN, "Launched; the first step is still to come."),
    RunStateName.RUNNING: ("▶", Tone.GOOD, "Training."),
    RunStateName.RECOVERING: ("↻", Tone.WARN, "Coming back after its nodes went away."),
    RunStateName.WAITING: ("⏸", Tone.WARN, "Waiting for capacity; nothing is billed meanwhile."),
    RunStateName.SUCCEEDED: ("✓", Tone.GOOD, "Finished."),
    RunStateName.STOPPED: ("■", Tone.WARN, "Stopped; it can be resumed."),
    RunStateName.FAILED: ("✕", Tone.BAD, "Failed; it can be resumed once the cause is gone."),
    RunStateName.UNKNOWN: ("?", Tone.WARN, "Nobody reports on it; it may still run and cost."),
}


def build_header(sources: Sources) -> Header:
    """Return the header."""
    state = RunStateName(sources.status["state"])
    symbol, tone, meaning = STATES[state]
    why = sources.status["why"]
    return Header(
        run=sources.view.record.run,
        state=state.value,
        symbol=symbol,
        tone=tone,
        meaning=f"{meaning} Why: {why}." if why else meaning,
        as_of=f"{write_instant(sources.view.as_of)} UTC",
        simulation=_simulation(sources),
        alerts=_alerts(sources),
    )


def build_indicators(sources: Sources) -> tuple[Indicator, ...]:
    """Return the strip of numbers, money first."""
    return (
        _spent(sources),
        _saved(sources),
        _goodput(sources),
        _progress(sources),
        _preemptions(sources),
        _replay(sources),
        _end(sources),
        _deadline(sources),
        *_expected_total(sources),
        _per_tokens(sources),
    )


def _simulation(sources: Sources) -> str | None:
    if not sources.status["simulated"]:
        return None
    scale = write_number(sources.status["time_scale"])
    return (
        f"1 s counts as {scale} s: prices, dollars and the deadline count simulated market time, "
        "instants and seconds are wall time. No cloud was billed."
    )


def _alerts(sources: Sources) -> tuple[Alert, ...]:
    alerts = []
    differing = sources.status["replay"]["differing"]
    if differing:
        named = ", ".join(str(step) for step in differing[:_NUM_STEPS_NAMED])
        more = f" and {len(differing) - _NUM_STEPS_NAMED} more" * (
            len(differing) > _NUM_STEPS_NAMED
        )
        alerts.append(
            Alert(
                tone=Tone.BAD,
                title="Replayed steps differ from their recorded values",
                text=f"Steps {named}{more}: the resumed run is not the run that was interrupted. "
                "See the loss curve's table for both values.",
            )
        )
    failed = [summary for summary in sources.launches if summary.error]
    if failed and RunStateName(sources.status["state"]) is not RunStateName.SUCCEEDED:
        title = f"{failed[-1].label.capitalize()} failed"
        alerts.append(Alert(tone=Tone.BAD, title=title, text=failed[-1].error or ""))
    return tuple(alerts)


def _spent(sources: Sources) -> Indicator:
    usd, budget = sources.status["usd"], sources.status["budget_usd"]
    share = usd / budget
    return Indicator(
        label="Spent",
        value=write_usd(usd),
        detail=f"{write_share(share)} of the {write_usd(budget)} budget",
        definition="Nodes, failed launches, storage, requests, egress and controller, by prices "
        "quoted at each launch and asked again since.",
        tone=budget_tone(share),
        meter=place(usd, 0, budget),
    )


def _expected_total(sources: Sources) -> tuple[Indicator, ...]:
    """Return what the run is going to cost in all; nothing without a forecast, or after the end."""
    forecast = sources.status["forecast"]
    if forecast is None or forecast["usd"]["p50"] is None:
        return ()
    usd, budget = forecast["usd"], sources.status["budget_usd"]
    low, middle, high = (usd[share] for share in ("p10", "p50", "p90"))
    most = NOTHING if high is None else write_usd(high)
    return (
        Indicator(
            label="Expected total",
            value=write_usd(middle),
            detail=f"{NOTHING if low is None else write_usd(low)} to {most} in 8 of 10 cases",
            definition="What was spent, and of the forecast at launch the share of the steps that "
            "are left, at the pace of the last ones.",
            tone=budget_tone(middle / budget),
        ),
    )


def _per_tokens(sources: Sources) -> Indicator:
    per_tokens, per_steps = (
        sources.cost[name] for name in ("usd_per_million_tokens", "usd_per_thousand_steps")
    )
    label, definition = "Per million tokens", "The whole bill over what was trained and kept."
    if per_tokens is None or per_steps is None:
        detail = "no step has been kept yet"
        return Indicator(label=label, value=NOTHING, detail=detail, definition=definition)
    detail = f"{write_usd(per_steps)} per 1,000 steps"
    return Indicator(label=label, value=write_usd(per_tokens), detail=detail, definition=definition)


def budget_tone(share: float) -> Tone:
    """Return how so much of a budget reads."""
    if share < _BUDGET_WARNING:
        return Tone.PLAIN
    return Tone.BAD if share >= 1 else Tone.WARN


def _saved(sources: Sources) -> Indicator:
    definition = (
        "What the same productive time plus one start-up would have cost on demand in the same "
        "regions without any preemption, less what was spent."
    )
    saved, on_demand = sources.cost["savings_fraction"], sources.cost["on_demand_usd"]
    label = "Saved against on-demand"
    if saved is None:
        detail = "no productive time to compare yet"
        return Indicator(label=label, value=NOTHING, detail=detail, definition=definition)
    usd = on_demand - sources.cost["total_usd"]
    if saved < 0:
        return Indicator(
            label=label,
            value=write_saving(saved),
            detail=f"{write_usd(-usd)} more than {write_usd(on_demand)}",
            definition=definition,
            tone=Tone.WARN,
        )
    return Indicator(
        label=label,
        value=write_saving(saved),
        detail=f"{write_usd(usd)} less than {write_usd(on_demand)}",
        definition=definition,
        tone=Tone.GOOD,
    )


def _goodput(sources: Sources) -> Indicator:
    shares = sources.cost["goodput"]
    return Indicator(
        label="Goodput",
        value=write_share(shares["wall"]),
        detail=f"of wall time; {write_share(shares['billed'])} of billed time",
        definition="Share of the time spent on steps whose result is part of the final model.",
        meter=round(100 * shares["wall"], 3),
    )


def _progress(sources: Sources) -> Indicator:
    step, num_steps = sources.status["step"], sources.status["num_steps"]
    return Indicator(
        label="Step",
        value=f"{step:,} of {num_steps:,}",
        detail=f"last commit at step {sources.status['last_commit_step']:,}",
        definition="Optimizer updates; whatever happens now, the last commit is kept.",
        meter=place(step, 0, num_steps),
    )


def _preemptions(sources: Sources) -> Indicator:
    num_attempts = len(sources.status["attempts"])
    return Indicator(
        label="Preemptions",
        value=f"{sources.status['num_preemptions']:,}",
        detail=f"{num_attempts:,} attempt{'' if num_attempts == 1 else 's'} so far",
        definition="Nodes that the cloud took back or that vanished.",
    )


def _replay(sources: Sources) -> Indicator:
    replay = sources.status["replay"]
    num_steps, differing = replay["steps"], len(replay["differing"])
    definition = (
        "Every step trained again after a preemption is compared with the loss and gradient norm "
        "recorded before it."
    )
    label = "Exact resume"
    if not num_steps:
        detail = "no step has been replayed so far"
        return Indicator(label=label, value=NOTHING, detail=detail, definition=definition)
    largest = f"largest difference {replay['max_abs_diff']:.3g}"
    if differing:
        return Indicator(
            label=label,
            value=f"{differing:,} step{'' if differing == 1 else 's'} differ",
            detail=f"in {num_steps:,} compared; {largest}",
            definition=definition,
            tone=Tone.BAD,
        )
    return Indicator(
        label=label,
        value=f"{num_steps:,} of {num_steps:,}",
        detail=f"replayed steps equal bit for bit; {largest}",
        definition=definition,
        tone=Tone.GOOD,
    )


def _end(sources: Sources) -> Indicator:
    definition = "Extrapolated from what each new step has taken so far, interruptions included."
    status = sources.status
    ended_at, eta_at = _parse(status["ended_at"]), _parse(status["eta_at"])
    if ended_at is not None:
        return Indicator(
            label="Ended",
            value=f"{ended_at:%H:%M:%S}",
            detail=f"{ended_at:%Y-%m-%d} UTC, after {write_duration(sources.goodput.wall)}",
            definition="When the run was over, in wall time.",
        )
    if eta_at is None:
        detail = "no step yet to extrapolate from"
        return Indicator(label="Expected end", value=NOTHING, detail=detail, definition=definition)
    deadline_at = _parse(status["deadline_at"])
    is_late = deadline_at is not None and eta_at > deadline_at
    left = write_duration(eta_at - sources.view.as_of)
    return Indicator(
        label="Expected end",
        value=f"in {left}",
        detail=f"{write_instant(eta_at)} UTC{', after the deadline' if is_late else ''}",
        definition=definition,
        tone=Tone.WARN if is_late else Tone.PLAIN,
    )


def _deadline(sources: Sources) -> Indicator:
    status, limit = sources.status, sources.view.state.spec.limits.deadline
    definition = "Longest time from the launch to the finished model, as the spec allows."
    deadline_at = _parse(status["deadline_at"])
    if deadline_at is None or limit is None:
        detail = "the spec sets none"
        return Indicator(label="Deadline", value=NOTHING, detail=detail, definition=definition)
    over_at = _parse(status["ended_at"]) or sources.view.as_of
    left = deadline_at - over_at
    value, more, tone = _deadline_verdict(RunStateName(status["state"]), left)
    counted = "simulated " if status["simulated"] else ""
    return Indicator(
        label="Deadline",
        value=value,
        detail=f"{more}{write_instant(deadline_at)} UTC",
        definition=f"{definition} Here: {write_duration(limit)} of {counted}time.",
        tone=tone,
    )


def _deadline_verdict(state: RunStateName, left: timedelta) -> tuple[str, str, Tone]:
    if left < timedelta():
        return "Missed", f"by {write_duration(-left)}: ", Tone.BAD
    if state is RunStateName.SUCCEEDED:
        return "Met", f"{write_duration(left)} before ", Tone.GOOD
    return f"in {write_duration(left)}", "", Tone.PLAIN


def _parse(instant: str | None) -> datetime | None:
    return None if instant is None else datetime.fromisoformat(instant)
