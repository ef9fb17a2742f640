"""A run's status on a terminal: bars once, or redrawn until the run is over; lines elsewhere."""

from __future__ import annotations

import sys
from datetime import timedelta

from orchestrator.cli.common import plain
from orchestrator.cli.wording import render_status
from orchestrator.clock import SystemClock
from orchestrator.errors import Detached
from orchestrator.report import describe_progress
from orchestrator.runs import KnownRun
from orchestrator.view import RunView, RunViewer

_WATCH_EVERY = timedelta(seconds=2)
# Each look at a bucket is a few requests that somebody pays for.
_WATCH_CLOUDS_EVERY = timedelta(seconds=10)
_LINE_EVERY = timedelta(seconds=10)


def draw(view: RunView) -> None:
    """Print the status once, for a terminal."""
    from rich.console import Console  # 60 ms, and only for people

    from orchestrator.cli.frames import status_frame

    Console().print(status_frame(view, render_status(view)))


def watch_status(known: KnownRun) -> None:
    """Show the run as it changes: in place on a terminal, else a line for each change.

    Raises:
        Detached: the user stopped watching.
    """
    viewer, clock = RunViewer(known.open()), SystemClock()
    view = viewer.look(clock.now())
    try:
        if sys.stdout.isatty():
            _redraw(viewer, view, clock)
        else:
            _print_changes(viewer, view, clock)
    except KeyboardInterrupt:
        raise Detached(
            f"Stopped watching. {known.run} goes on, and so does its cost.",
            f"Stop it: orchestrate stop {known.run}",
        ) from None


def _redraw(viewer: RunViewer, view: RunView, clock: SystemClock) -> None:
    from rich.live import Live

    from orchestrator.cli.frames import status_frame

    with Live(status_frame(view, render_status(view)), auto_refresh=False) as live:
        while view.state.ended is None:
            clock.sleep(_pause(view))
            view = viewer.look(clock.now())
            live.update(status_frame(view, render_status(view)), refresh=True)


def _print_changes(viewer: RunViewer, view: RunView, clock: SystemClock) -> None:
    said, said_at = "", view.as_of - _LINE_EVERY
    while True:
        line, is_over = describe_progress(view), view.state.ended is not None
        if line != said and (is_over or view.as_of - said_at >= _LINE_EVERY):
            print(plain(line), flush=True)
            said, said_at = line, view.as_of
        if is_over:
            return
        clock.sleep(_pause(view))
        view = viewer.look(clock.now())


def _pause(view: RunView) -> timedelta:
    return _WATCH_EVERY if view.record.spec.is_local else _WATCH_CLOUDS_EVERY
