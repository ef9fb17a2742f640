"""`orchestrate stop` and `delete`."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Sequence
from datetime import datetime
from urllib.parse import unquote, urlsplit

import click

from checkpoints.errors import StoreError
from checkpoints.layout import RUN_KEY
from checkpoints.store import ObjectStore
from orchestrator.attempts import EndReason, StopReason
from orchestrator.audit import this_command
from orchestrator.cli.common import confirm, examples, say, show_usd, store_option, yes_option
from orchestrator.cli.completion import complete_run
from orchestrator.cli.retention import abort_uploads
from orchestrator.clock import SystemClock
from orchestrator.cloud.local.launcher import is_supervised
from orchestrator.errors import GaveUp, UsageError
from orchestrator.exporting import forget_exports
from orchestrator.home import run_home
from orchestrator.ledger.facts import (
    LaunchEnded,
    RunEnded,
    StopRequested,
    TerminatedBy,
)
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.requests import Request, RequestKind, ask
from orchestrator.places import open_places
from orchestrator.runs import KnownRun, find_run, forget_run
from orchestrator.standing import RunStateName, state_name
from orchestrator.view import RunView, RunViewer

_LOOK_EVERY_S = 0.5
_STOP_TIMEOUT_S = 150.0
# Nodes on clouds have three minutes to save, and take one more to be terminated.
_CLOUD_STOP_TIMEOUT_S = 300.0


@click.command(epilog=examples("orchestrate stop vicuna-7b"))
@click.argument("run", shell_complete=complete_run)
@store_option
@yes_option
@click.option("--detach", is_flag=True, help="Return when the request is made.")
def stop(run: str, store: str | None, *, yes: bool, detach: bool) -> None:
    """Have RUN save a checkpoint and stop; orchestrate resume goes on from there."""
    known = find_run(run, store)
    folder, clock = known.open(), SystemClock()
    viewer = RunViewer(folder)
    view = viewer.look(clock.now())
    if view.state.ended is not None:
        say(f"{run} has ended already: {view.state.ended.state.value}.")
        return
    confirm(f"Stop {run} at step {view.step}?", yes=yes)
    _request_stop(folder, clock, view.state.launched_at)
    if not view.state.spec.is_local:
        _stop_on_clouds(viewer, folder, clock, detach=detach)
        return
    if not is_supervised(run_home(known.store_url, run)) and _is_silent(view):
        _end_without_supervisor(folder, clock, view)
    if detach:
        say(f"Asked {run} to stop. See orchestrate status {run}")
        return
    _wait_until_stopped(viewer, clock, run, _STOP_TIMEOUT_S)


@click.command(epilog=examples("orchestrate delete old-run --confirm old-run"))
@click.argument("run", shell_complete=complete_run)
@store_option
@click.option("--confirm", "typed", metavar="NAME", help="The run's name, instead of typing it.")
def delete(run: str, store: str | None, typed: str | None) -> None:
    """Delete RUN with its checkpoints and records; this cannot be undone."""
    known = find_run(run, store)
    folder = known.open()
    view = RunViewer(folder).look(SystemClock().now())
    if view.state.ended is None and not _is_abandoned(view):
        raise UsageError(f"{run} is {state_name(view).value}.", f"First: orchestrate stop {run}")
    places = open_places(folder, view.state.spec, _say_left_behind)
    reached = []
    for place in places.stores:
        try:
            entries = place.list("")
        except StoreError as error:
            if place is folder:
                raise
            _say_left_behind(place.url, error)
            continue
        size = sum(entry.size for entry in entries) / 1e6
        say(f"{place.url}: {len(entries)} objects, {size:.1f} MB.")
        reached.append(place)
    _require_name(run, typed)
    _delete_all(reached, known)
    forget_exports(known)
    say(f"Deleted {run}.")


def _request_stop(folder: ObjectStore, clock: SystemClock, launched_at: datetime) -> None:
    host = socket.gethostname()
    stop = Request(kind=RequestKind.STOP, at=clock.now(), by=host, launched_at=launched_at)
    ask(folder, stop)
    requested = StopRequested(host=host, launched_at=launched_at, command=this_command())
    Journal(folder, "cli", clock).note(requested)


def _is_abandoned(view: RunView) -> bool:
    if state_name(view) is not RunStateName.UNKNOWN:
        return False
    if view.state.spec.is_local:
        return True
    from orchestrator.cloud.skypilot.launcher import live_job

    return live_job(view.record) is None


def _stop_on_clouds(
    viewer: RunViewer, folder: ObjectStore, clock: SystemClock, *, detach: bool
) -> None:
    """Have the nodes save and leave; whatever is left after that is terminated by SkyPilot."""
    from orchestrator.cloud.skypilot.launcher import cancel_job, live_job

    view = viewer.look(clock.now())
    run = view.record.run
    if live_job(view.record) is not None:
        if detach:
            say(f"Asked {run} to stop. See orchestrate status {run}")
            return
        try:
            _wait_until_stopped(viewer, clock, run, _CLOUD_STOP_TIMEOUT_S)
        except GaveUp:
            say(f"{run} did not stop by itself; cancelling its managed job ...")
        # Also of one that did: SkyPilot terminates its nodes, and is not to start it again.
        cancel_job(view.record, clock)
    view = viewer.look(clock.now())
    if view.state.ended is None:
        _end_without_supervisor(folder, clock, view)
        _wait_until_stopped(viewer, clock, run, _STOP_TIMEOUT_S)


def _is_silent(view: RunView) -> bool:
    """Say whether nobody has reported on the run for so long that nobody will."""
    return state_name(view) in (RunStateName.UNKNOWN, RunStateName.PENDING)


def _end_without_supervisor(folder: ObjectStore, clock: SystemClock, view: RunView) -> None:
    journal = Journal(folder, "cli", clock)
    for launch in view.state.open_launches:
        journal.record(
            LaunchEnded(
                launch=launch.launch,
                reason=EndReason.NODE_LOST,
                terminated_by=TerminatedBy.US,
                detail="its supervisor died",
                gone_at=view.billed_until,
            )
        )
    journal.note(
        RunEnded.after(
            StopReason.REQUESTED,
            "a stop was requested, and nobody was running it",
            view.state.launched_at,
        )
    )


def _wait_until_stopped(viewer: RunViewer, clock: SystemClock, run: str, timeout_s: float) -> None:
    give_up_at = time.monotonic() + timeout_s
    say(f"Waiting for {run} to save and stop ...")
    while time.monotonic() < give_up_at:
        view = viewer.look(clock.now())
        if view.state.ended is not None:
            say(
                f"{run} {view.state.ended.state.value} at step {view.state.last_commit_step}, "
                f"{show_usd(view)}. Go on: orchestrate resume {run}"
            )
            return
        time.sleep(_LOOK_EVERY_S)
    raise GaveUp(f"{run} has not stopped yet.", f"It was asked to: orchestrate status {run}")


def _require_name(run: str, typed: str | None) -> None:
    given = typed if typed is not None else _ask_for_name(run)
    if given != run:
        raise UsageError(f"{given!r} is not {run!r}; nothing was deleted.", "Type the run's name.")


def _ask_for_name(run: str) -> str:
    if not click.get_text_stream("stdin").isatty():
        raise click.UsageError(f"There is no terminal to ask on: add --confirm {run}.")
    return str(click.prompt(f"Type {run} to delete it", err=True))


def _say_left_behind(url: str, error: StoreError) -> None:
    say(f"{url} cannot be emptied, and what the run has there stays, and is billed: {error}")


def _delete_all(stores: Sequence[ObjectStore], known: KnownRun) -> None:
    """Delete run.json last, so that a delete that was interrupted can be run again.

    The run's own store is the last of `stores`.
    """
    for store in stores:
        try:
            abort_uploads(store, "", lambda key: True)
            store.delete([entry.key for entry in store.list("") if entry.key != RUN_KEY])
        except StoreError as error:
            if store is stores[-1]:
                raise
            _say_left_behind(store.url, error)
    stores[-1].delete([RUN_KEY])
    for store in stores:
        if store.url.startswith("file:"):
            # The folder itself, with the store's own lock and what killed writers left.
            shutil.rmtree(unquote(urlsplit(store.url).path), ignore_errors=True)
    home = run_home(known.store_url, known.run)
    forget_run(home)
    shutil.rmtree(home, ignore_errors=True)
