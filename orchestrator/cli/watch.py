"""Watch a run until it is over: what happens as lines, how far it is as a bar on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.text import Text

from orchestrator.attempts import StopReason
from orchestrator.cli.common import plain, say, show_usd
from orchestrator.clock import Clock, show_duration
from orchestrator.cloud.local.launcher import LOG_NAME
from orchestrator.cost import budget_told
from orchestrator.errors import Detached, GaveUp, TrainingFailed
from orchestrator.launch import Launched, is_carried_out, why_job_ended
from orchestrator.report import describe_evaluations, describe_progress, next_step_after
from orchestrator.standing import missed_by
from orchestrator.view import RunView, RunViewer

_LOOK_EVERY = timedelta(seconds=0.5)
# On clouds each look is a few requests that somebody pays for, and so is asking SkyPilot.
_LOOK_AT_CLOUDS_EVERY = timedelta(seconds=5)
_ASK_SKYPILOT_EVERY = timedelta(minutes=1)
# Without a terminal one progress line in this time; a log file needs no more.
_LINE_EVERY = timedelta(seconds=10)
# A supervisor takes about a second to start and to take its lock.
_START_GRACE = timedelta(seconds=20)
_BAR_WIDTH = 24


def watch(launched: Launched, clock: Clock) -> None:
    """Show the run until it ends.

    Raises:
        GaveUp, TrainingFailed: it ended before its last step.
        Detached: the user stopped watching.
        GaveUp: also when its supervisor died.
    """
    name = launched.record.run
    try:
        view = _watch_until_over(launched, clock)
    except KeyboardInterrupt:
        raise Detached(
            f"Stopped watching. {name} goes on, and so does its cost.",
            f"Watch: orchestrate resume {name} --yes. Stop: orchestrate stop {name}",
        ) from None
    _conclude(view)


def _watch_until_over(launched: Launched, clock: Clock) -> RunView:
    viewer = RunViewer(launched.store)
    view = viewer.look(clock.now())
    teller = _Teller(view)
    is_local = view.state.spec.is_local
    ask_at = clock.now() + (_START_GRACE if is_local else _ASK_SKYPILOT_EVERY)
    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while view.state.ended is None:
            _show(view, teller, live, console)
            clock.sleep(_LOOK_EVERY if is_local else _LOOK_AT_CLOUDS_EVERY)
            if clock.now() >= ask_at:
                if not is_carried_out(launched, clock):
                    _require_end(viewer.look(clock.now()), launched)
                ask_at = clock.now() + (_LOOK_EVERY if is_local else _ASK_SKYPILOT_EVERY)
            view = viewer.look(clock.now())
        _show(view, teller, live, console)
    return view


def _show(view: RunView, teller: _Teller, live: Live, console: Console) -> None:
    for line in teller.news(view, is_terminal=console.is_terminal):
        console.print(plain(line), highlight=False, markup=False, soft_wrap=True)
    if console.is_terminal:
        filled = round(_BAR_WIDTH * view.step / view.record.num_steps)
        bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
        live.update(Text(f"{bar} {describe_progress(view)}"), refresh=True)


def _require_end(view: RunView, launched: Launched) -> None:
    """Raise if the run is not over, although nobody runs it any more."""
    if view.state.ended is None:
        if view.state.spec.is_local:
            what = (
                f"The supervisor of {launched.record.run} is gone; see {launched.home / LOG_NAME}."
            )
        else:
            what = f"The managed job of {launched.record.run} is gone: {why_job_ended(launched)}."
        raise GaveUp(what, "Run the same command again: it picks the run up where it is.")


def _conclude(view: RunView) -> None:
    ended, name = view.state.ended, view.record.run
    assert ended is not None
    replay = view.replay
    took = show_duration(view.goodput.wall)
    say(
        f"{name} {ended.state.value} after {took}: step {view.step}/{view.record.num_steps}, "
        f"preempted {view.state.num_preemptions} times, {show_usd(view)}"
    )
    late = missed_by(view)
    if late is not None:
        say(f"The deadline was missed by {show_duration(late)} (wall time).")
    evaluations = describe_evaluations(view)
    if evaluations is not None:
        say(evaluations.capitalize())
    if replay.num_steps:
        verdict = "all equal bit for bit" if not replay.differing else f"{replay.differing} differ"
        say(f"Replayed steps compared with their recorded values: {replay.num_steps}, {verdict}")
    say(f"Next: orchestrate cost {name} · orchestrate dashboard {name} --export {name}.html")
    errors = [end.error for end in view.state.attempt_ends if end.error]
    _raise_unless_done(ended.reason, ended.why, name, errors[-1] if errors else None)


def _raise_unless_done(reason: StopReason, why: str, name: str, error: str | None) -> None:
    if reason is StopReason.DONE:
        return
    if reason is StopReason.TOO_MANY_FAILURES:
        cause = "" if error is None else f" The last one: {error}"
        raise TrainingFailed(f"{name} failed: {why}.{cause}", next_step_after(name, reason))
    raise GaveUp(f"{name} stopped: {why}.", next_step_after(name, reason))


class _Teller:
    """Remembers what has been told."""

    def __init__(self, view: RunView) -> None:
        self._told: set[str] = set()
        self._line_at = view.as_of - _LINE_EVERY
        # Attaching to a run that is under way: what happened before is history, not news.
        self._told.update(key for key, _ in _events(view))

    def news(self, view: RunView, *, is_terminal: bool) -> Iterator[str]:
        """Yield what has happened since, one line each."""
        for key, line in _events(view):
            if key not in self._told:
                self._told.add(key)
                yield line
        if not is_terminal and view.as_of - self._line_at >= _LINE_EVERY:
            self._line_at = view.as_of
            yield describe_progress(view)


def _events(view: RunView) -> Iterator[tuple[str, str]]:
    """Yield (key, line) of everything worth telling, in the order of time within each launch."""
    for launch in view.state.launches:
        if launch.ready_at is not None:
            yield f"{launch.launch} up", f"node up: {launch.offer}"
        if launch.attempt is not None:
            start = f"from step {launch.resumed_step}" if launch.resumed_step else "from the start"
            yield f"{launch.launch} attempt", f"attempt {launch.attempt} {start}"
        for commit in view.state.commits:
            if commit.attempt == launch.attempt:
                yield commit.manifest, f"checkpoint committed at step {commit.step}"
        if launch.notice_at is not None:
            yield f"{launch.launch} notice", f"attempt {launch.attempt}: notice of preemption"
        if launch.reason is not None:
            detail = f" ({launch.detail})" if launch.detail else ""
            yield f"{launch.launch} end", f"{launch.offer}: {launch.reason.value}{detail}"
    yield from _budget_events(view)
    for end in view.state.attempt_ends:
        if end.error:
            yield f"attempt {end.attempt} error", f"attempt {end.attempt}: {end.error}"


def _budget_events(view: RunView) -> Iterator[tuple[str, str]]:
    usd, budget = view.parts.total, view.state.spec.limits.budget_usd
    for share in budget_told(usd, budget):
        # Of which budget: a run can be given more.
        yield f"{share} of {budget}", f"{share:.0%} of the budget is used: ${usd:.2f} of ${budget}"
