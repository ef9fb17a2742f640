"""What is worth telling of a run, as a pure function of its facts, heartbeats and the time.

Keys name the fact and not its telling, so every process computes the same ones and each fact is
told once, whoever does it. What an earlier launch of the run went through is history, not news.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from enum import Enum

from orchestrator.attempts import EndReason, StopReason
from orchestrator.clock import show_duration
from orchestrator.cost import bill, budget_told
from orchestrator.ledger.facts import FinalState, RunEnded
from orchestrator.ledger.fold import LaunchView
from orchestrator.report import next_step_after
from orchestrator.spec import NewsKind
from orchestrator.standing import deadline_at, missed_by, spare
from orchestrator.view import RunView

# Of what training said last: a chat is no place for a traceback.
_MOST_ERROR = 500
_FAILURES = {
    EndReason.TRAINING_FAILED: "failed",
    EndReason.HANG: "hung",
    EndReason.SETUP_FAILED: "could not be set up",
    EndReason.NO_ACCESS: "was refused by the cloud",
}


class Level(str, Enum):
    """How loud a message is."""

    INFO = "info"
    SUCCESS = "success"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """One message; two with the same key tell the same fact."""

    key: str
    kind: NewsKind
    title: str
    text: str
    level: Level


def news(view: RunView) -> list[News]:
    """Return all that the current launch of the run has to tell; the view needs no measurements."""
    found = [*_of_launches(view), *_of_budget(view), *_of_deadline(view), *_of_end(view)]
    return [replace(one, title=f"{view.record.run}: {one.title}") for one in found]


def _of_launches(view: RunView) -> Iterator[News]:
    """Yield what happened to the nodes, in order."""
    lost: LaunchView | None = None
    for launch in view.state.launches:
        if not view.state.is_current(launch):
            continue
        if lost is not None and launch.attempt is not None:
            yield _recovery(view, launch, lost)
            lost = None
        if launch.is_lost:
            lost = launch
            yield _preemption(view, launch)
        elif launch.reason in _FAILURES:
            yield _failure(view, launch, _FAILURES[launch.reason])


def _preemption(view: RunView, launch: LaunchView) -> News:
    if launch.attempt is None:
        title = "nodes lost before training"
        what = f"Nodes on {launch.offer} were lost while they were set up."
    else:
        title = f"attempt {launch.attempt} was preempted"
        notice = "after a notice" if launch.notice_at is not None else "without notice"
        step = view.furthest_step(launch)
        what = (
            f"Attempt {launch.attempt} on {launch.offer} was lost {notice} after step {step} of "
            f"{view.record.num_steps}; {_lost_steps(view, launch.attempt, step)}."
        )
    return News(
        key=f"preemption {launch.launch}",
        kind=NewsKind.PREEMPTION,
        title=title,
        text=f"{what} So far: {_spent(view)}.",
        level=Level.WARNING,
    )


def _lost_steps(view: RunView, attempt: int, step: int) -> str:
    kept = [
        commit.step
        for commit in view.state.commits
        if commit.damage is None and commit.attempt <= attempt
    ]
    lost = max(0, step - max(kept, default=0))
    steps = f"{lost} step{'' if lost == 1 else 's'}"
    return "nothing is lost" if lost == 0 else f"{steps} since its last checkpoint are lost"


def _recovery(view: RunView, launch: LaunchView, lost: LaunchView) -> News:
    begun_at = launch.attempt_started_at or launch.started_at
    took = show_duration(begun_at - (lost.ended_at or begun_at))
    step = launch.resumed_step or 0
    where = f"goes on after step {step}" if step else "starts from the beginning"
    return News(
        key=f"recovery {launch.launch}",
        kind=NewsKind.RECOVERY,
        title=f"attempt {launch.attempt} goes on",
        text=f"Attempt {launch.attempt} on {launch.offer} {where}, {took} after the loss. So far: "
        f"{_spent(view)}.",
        level=Level.INFO,
    )


def _failure(view: RunView, launch: LaunchView, what: str) -> News:
    name = view.record.run
    who = "nodes" if launch.attempt is None else f"attempt {launch.attempt}"
    errors = [end.error for end in view.state.attempt_ends if end.attempt == launch.attempt]
    why = (launch.attempt and next(iter(errors), None)) or launch.detail or launch.reason
    see = f"orchestrate status {name}"
    if launch.attempt is not None:
        see = f"orchestrate logs {name} --attempt {launch.attempt}"
    return News(
        key=f"failure {launch.launch}",
        kind=NewsKind.FAILURE,
        title=f"{who} {what}",
        text=f"{who.capitalize()} on {launch.offer} {what} after step {view.furthest_step(launch)}:"
        f" {_short(str(why))}. So far: {_spent(view)}. See: {see}",
        level=Level.WARNING,
    )


def _of_budget(view: RunView) -> Iterator[News]:
    """Yield the shares used up since the launch, and the highest one that was used up before.

    Of which budget is in the key: a run can be given more.
    """
    state, usd = view.state, view.parts.total
    budget = state.spec.limits.budget_usd
    earlier = replace(
        state, launches=tuple(one for one in state.launches if not state.is_current(one))
    )
    num_before = len(budget_told(bill(earlier, state.launched_at).total, budget))
    for share in budget_told(usd, budget)[max(0, num_before - 1) :]:
        yield News(
            key=f"budget {share:.0%} of {_plain(budget)}",
            kind=NewsKind.BUDGET,
            title=f"{share:.0%} of the budget is used",
            text=f"The run has cost {_spent(view)}, at step {view.step} of "
            f"{view.record.num_steps}.",
            level=Level.FAILURE if share == 1 else Level.WARNING,
        )


def _of_deadline(view: RunView) -> Iterator[News]:
    """Yield that the deadline is at risk or has passed: one fact, told when it is seen first."""
    due_at = deadline_at(view.state)
    if due_at is None or view.state.ended is not None:
        return
    left = spare(view)
    if missed_by(view) is not None:
        title, what = "the deadline has passed", "The deadline has passed"
    elif left is not None and left < timedelta():
        title = "the deadline is at risk"
        what = f"At this pace the run ends {show_duration(-left)} after its deadline"
    else:
        return
    yield News(
        key=f"deadline {due_at.isoformat()}",
        kind=NewsKind.DEADLINE,
        title=title,
        text=f"{what}, {due_at:%d %b %H:%M} UTC. It is at step {view.step} of "
        f"{view.record.num_steps}. So far: {_spent(view)}.",
        level=Level.WARNING,
    )


def _of_end(view: RunView) -> Iterator[News]:
    ended, name = view.state.ended, view.record.run
    if ended is None:
        return
    took = (view.state.ended_at or view.as_of) - view.record.created_at
    late = missed_by(view)
    missed = "" if late is None else f" The deadline was missed by {show_duration(late)}."
    kind, title, level = _verdict(ended)
    yield News(
        key=f"end {ended.launched_at.isoformat()}",
        kind=kind,
        title=title,
        text=f"{ended.state.value} after {show_duration(took)}: step {view.step} of "
        f"{view.record.num_steps}, preempted {view.state.num_preemptions} times, {_spent(view)}. "
        f"Why: {_short(ended.why)}.{missed} {next_step_after(name, ended.reason)}",
        level=level,
    )


def _verdict(ended: RunEnded) -> tuple[NewsKind, str, Level]:
    if ended.state is FinalState.SUCCEEDED:
        return NewsKind.FINISH, "finished", Level.SUCCESS
    if ended.reason is StopReason.REQUESTED:
        return NewsKind.FINISH, "stopped, as requested", Level.INFO
    if ended.state is FinalState.STOPPED:
        return NewsKind.FAILURE, "stopped before it was done", Level.FAILURE
    return NewsKind.FAILURE, "failed", Level.FAILURE


def _spent(view: RunView) -> str:
    simulated = " (simulated)" if view.record.simulated else ""
    return f"${view.parts.total:.2f} of ${view.state.spec.limits.budget_usd}{simulated}"


def _plain(amount: Decimal) -> str:
    """Write an amount in one way, whatever zeros it was given with."""
    return f"{amount.normalize():f}"


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= _MOST_ERROR else f"{one_line[:_MOST_ERROR]} ..."
