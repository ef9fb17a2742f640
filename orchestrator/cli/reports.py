"""`orchestrate status`, `cost` and `logs`: what a run folder says."""

from __future__ import annotations

import sys
import time

import click

from checkpoints.layout import LOGS, parse_log_key
from checkpoints.store import ObjectStore
from orchestrator.cli.common import (
    examples,
    json_option,
    plain,
    print_json,
    say,
    store_option,
    yes_option,
)
from orchestrator.cli.completion import complete_run
from orchestrator.cli.reconciling import read_bills, reconcile_option
from orchestrator.cli.watching import draw, watch_status
from orchestrator.cli.wording import money, render_cost, render_status, side_by_side
from orchestrator.clock import SystemClock
from orchestrator.errors import UnknownRun, UsageError
from orchestrator.glance import Glance, glance_at
from orchestrator.report import cost_document, status_document
from orchestrator.runs import KnownRun, find_run, list_runs
from orchestrator.standing import RunStateName, state_name
from orchestrator.view import RunView, RunViewer

_FOLLOW_EVERY_S = 1.0


@click.command(
    epilog=examples(
        "orchestrate status",
        "orchestrate status vicuna-7b --watch",
        "orchestrate status vicuna-7b --store s3://bucket/runs --json",
    )
)
@click.argument("run", required=False, shell_complete=complete_run)
@click.option("--watch", "is_watched", is_flag=True, help="Go on showing it until it is over.")
@store_option
@json_option
def status(run: str | None, store: str | None, *, is_watched: bool, as_json: bool) -> None:
    """Show how RUN is doing; without RUN, every run that is known."""
    if is_watched and (run is None or as_json):
        raise UsageError(
            "--watch shows one run, for people.",
            "Give a RUN and no --json; all of them: orchestrate dashboard",
        )
    if run is None:
        _status_of_all(list_runs(store), as_json=as_json)
        return
    if is_watched:
        watch_status(find_run(run, store))
        return
    view = look(find_run(run, store))
    if as_json:
        print_json(status_document(view))
    elif sys.stdout.isatty():
        draw(view)
    else:
        print(plain(render_status(view)))


@click.command(
    epilog=examples(
        "orchestrate cost vicuna-7b",
        "orchestrate cost first second",
        "orchestrate cost vicuna-7b --reconcile billing.csv",
    )
)
@click.argument("runs", nargs=-1, metavar="[RUN]...", shell_complete=complete_run)
@store_option
@json_option
@reconcile_option
@yes_option
def cost(
    runs: tuple[str, ...], store: str | None, sources: tuple[str, ...], *, as_json: bool, yes: bool
) -> None:
    """Show what RUN cost and where its time went; several side by side.

    Without RUN, one line per run.
    """
    if sources and len(runs) != 1:
        raise UsageError(
            "A cloud's bill is read for one run.", "orchestrate cost RUN --reconcile SOURCE"
        )
    if sources:
        read_bills(find_run(runs[0], store), sources, yes=yes)
    views = [look(find_run(run, store)) for run in runs]
    if len(views) == 1:
        if as_json:
            print_json(cost_document(views[0]))
        else:
            print(plain(render_cost(views[0])))
    elif views:
        if as_json:
            print_json({"schema_version": 1, "runs": [cost_document(view) for view in views]})
        else:
            print(plain(side_by_side(views)))
    else:
        _cost_of_all(store, as_json=as_json)


def _cost_of_all(store: str | None, *, as_json: bool) -> None:
    seen = glance_at(list_runs(store), SystemClock().now())
    documents = [one.cost() for one in seen if isinstance(one, Glance)]
    if as_json:
        print_json({"schema_version": 1, "runs": documents})
        return
    for document in documents:
        print(f"{document['run']:<24}{document['state']:<12}{money(document)}")
    if not documents:
        say("No runs yet. Start one: orchestrate launch examples/quickstart.yaml")


@click.command(
    epilog=examples(
        "orchestrate logs vicuna-7b -f", "orchestrate logs vicuna-7b --attempt 2 --node 0"
    )
)
@click.argument("run", shell_complete=complete_run)
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
        line = one.line if isinstance(one, Glance) else f"UNKNOWN · {one.why}"
        print(plain(f"{one.run:<24}{line}"))
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
        text = store.get(entry.key).data.decode(errors="replace")
        # A file gets what was uploaded; a terminal would obey it, and \r redraws a bar.
        sys.stdout.write(plain(text.replace("\r", "\n")) if sys.stdout.isatty() else text)
        sys.stdout.flush()
