"""`orchestrate checkpoints prune|pin|unpin`: what of a run's checkpoints is kept."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import click

from checkpoints.errors import ObjectMissing, StoreError
from checkpoints.fence import read_head
from checkpoints.layout import CHECKPOINTS
from checkpoints.manifest import Head
from checkpoints.places import Places
from checkpoints.retention import (
    StoredCheckpoint,
    is_left_by_lower_attempt,
    read_pins,
    removable,
    remove,
)
from checkpoints.retention import pin as pin_checkpoint
from checkpoints.retention import unpin as unpin_checkpoint
from checkpoints.store import ObjectStore
from orchestrator.audit import this_command
from orchestrator.cli.common import (
    confirm,
    examples,
    json_option,
    print_json,
    say,
    store_option,
    yes_option,
)
from orchestrator.cli.completion import complete_run
from orchestrator.clock import SystemClock
from orchestrator.errors import UsageError
from orchestrator.exporting import find_step, no_such_step, open_run
from orchestrator.launch import current_state
from orchestrator.ledger.facts import CheckpointDeleted
from orchestrator.ledger.journal import Journal
from orchestrator.places import open_places
from train.config import CheckpointOptions

_MOST_STEPS = 10**12
_POINT = attrgetter("point")


@click.command(
    short_help="Delete checkpoints that no rule keeps.",
    epilog=examples("orchestrate checkpoints prune vicuna-7b --keep-last 1 --dry-run"),
)
@click.argument("run", shell_complete=complete_run)
@click.option(
    "--keep-last",
    type=click.IntRange(1, _MOST_STEPS),
    metavar="N",
    help="Newest checkpoints to keep, instead of what the spec says.",
)
@click.option(
    "--keep-every",
    type=click.IntRange(0, _MOST_STEPS),
    metavar="N",
    help="Also keep every checkpoint whose step is a multiple of this; 0 for none.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@store_option
@yes_option
@json_option
def prune(
    run: str,
    keep_last: int | None,
    keep_every: int | None,
    store: str | None,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete RUN's checkpoints that no rule keeps, and what dead attempts left half uploaded.

    HEAD, its parent and pinned checkpoints always stay. RUN may go on meanwhile.
    """
    folder, record = open_run(run, store)
    head = _read_head(folder)  # before the ledger: whoever claims the run meanwhile is alive
    state = current_state(folder, record)
    places = open_places(folder, state.spec, _say_skipped)
    rules = _rules(state.spec.checkpoints, keep_last, keep_every)
    alive_from = 0 if head is None else head.attempt + (state.ended is not None)
    doomed = _doomed(places, rules, alive_from)
    _show(doomed, say if as_json else print)
    aborted: list[str] = []
    if not dry_run:
        if doomed:
            confirm("Delete them for good?", yes=yes)
            doomed = _delete(places, doomed, rules, alive_from)
        aborted = _abort_leftovers(places, alive_from)
    if as_json:
        print_json(_document(run, doomed, aborted, dry_run=dry_run))
    elif not dry_run:
        say(f"Deleted {_total(doomed)}; aborted {len(aborted)} unfinished uploads.")


@click.command(
    short_help="Keep a checkpoint until it is unpinned.",
    epilog=examples("orchestrate checkpoints pin vicuna-7b 1200"),
)
@click.argument("run", shell_complete=complete_run)
@click.argument("step", type=click.IntRange(min=0))
@store_option
def pin(run: str, step: int, store: str | None) -> None:
    """Keep RUN's checkpoint of STEP until it is unpinned; nothing prunes it."""
    folder, _ = open_run(run, store)
    point = find_step(folder, run, step)
    try:
        pin_checkpoint(folder, point)
    except ObjectMissing as error:
        raise no_such_step(run, step) from error
    say(f"Pinned step {step} of {run}. Undo it: orchestrate checkpoints unpin {run} {step}")


@click.command(
    short_help="Let a checkpoint be pruned again.",
    epilog=examples("orchestrate checkpoints unpin vicuna-7b 1200"),
)
@click.argument("run", shell_complete=complete_run)
@click.argument("step", type=click.IntRange(min=0))
@store_option
def unpin(run: str, step: int, store: str | None) -> None:
    """Let RUN's checkpoint of STEP be pruned again."""
    folder, _ = open_run(run, store)
    # By the pins themselves: what was given up as damaged is pinned as well as ever.
    pinned = sorted(point for point in read_pins(folder) if point[0] == step)
    if not pinned:
        raise UsageError(
            f"No checkpoint of step {step} of {run} is pinned.",
            f"See orchestrate checkpoints list {run}",
        )
    for point in pinned:
        unpin_checkpoint(folder, point)
    say(f"Step {step} of {run} is pruned as the others are.")


def abort_uploads(folder: ObjectStore, prefix: str, is_stale: Callable[[str], bool]) -> list[str]:
    """Abort unfinished uploads; one who may delete but not list them is told so, and goes on."""
    try:
        return folder.abort_uploads(prefix, is_stale)
    except StoreError as error:
        say(f"Unfinished uploads were not aborted: {error.what}")
        return []


def show_size(num_bytes: int) -> str:
    """Write a size as people read it."""
    for unit, power in (("GB", 9), ("MB", 6)):
        if num_bytes >= 10**power:
            return f"{num_bytes / 10**power:.1f} {unit}"
    return f"{num_bytes / 1000:.1f} kB"


def _rules(
    spec: CheckpointOptions, keep_last: int | None, keep_every: int | None
) -> CheckpointOptions:
    return CheckpointOptions(
        keep_last=keep_last or spec.keep_last,
        keep_every=spec.keep_every if keep_every is None else keep_every or None,
    )


def _read_head(folder: ObjectStore) -> Head | None:
    found = read_head(folder)
    return None if found is None else found[0]


def _say_skipped(url: str, error: StoreError) -> None:
    say(f"{url} was left out: {error}")


def _doomed(places: Places, rules: CheckpointOptions, alive_from: int) -> list[StoredCheckpoint]:
    """Return what may go now; attempts before `alive_from` will not write any more."""
    head = _read_head(places.records)
    if head is None:
        return []
    return removable(
        places,
        head=head,
        keep_last=rules.keep_last,
        keep_every=rules.keep_every,
        alive_from=alive_from,
    )


def _delete(
    places: Places, shown: list[StoredCheckpoint], rules: CheckpointOptions, alive_from: int
) -> list[StoredCheckpoint]:
    """Delete what was shown and may still go, for the answer may have taken hours."""
    journal, command = Journal(places.records, "cli", SystemClock()), this_command()
    wanted = {checkpoint.point for checkpoint in shown}
    gone = []
    for checkpoint in _doomed(places, rules, alive_from):
        if checkpoint.point not in wanted:
            continue
        if not remove(places, checkpoint):
            say(f"{checkpoint.prefix} is not gone: it was pinned, or a store refused.")
            continue
        # Said at once: from here on it is not billed. Killed before, the next agent says it.
        journal.note(CheckpointDeleted(checkpoint=checkpoint.prefix, command=command))
        gone.append(checkpoint)
    return gone


def _abort_leftovers(places: Places, alive_from: int) -> list[str]:
    return [
        key
        for store in places.stores
        for key in abort_uploads(
            store, CHECKPOINTS, lambda key: is_left_by_lower_attempt(key, alive_from)
        )
    ]


def _show(doomed: list[StoredCheckpoint], show: Callable[[str], None]) -> None:
    for checkpoint in sorted(doomed, key=_POINT):
        step, attempt = checkpoint.point
        why = "" if checkpoint.is_whole else "  never committed"
        size = show_size(checkpoint.num_bytes)
        show(f"step {step:<8} attempt {attempt:<4} {size:>10}  {checkpoint.prefix}{why}")
    show(f"{_total(doomed)} may go." if doomed else "Every checkpoint is kept by a rule.")


def _total(doomed: list[StoredCheckpoint]) -> str:
    size = show_size(sum(checkpoint.num_bytes for checkpoint in doomed))
    return f"{len(doomed)} checkpoint{'' if len(doomed) == 1 else 's'}, {size}"


def _document(
    run: str, doomed: list[StoredCheckpoint], aborted: list[str], *, dry_run: bool
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "run": run,
        "is_dry_run": dry_run,
        "checkpoints": [
            {
                "step": checkpoint.point[0],
                "attempt": checkpoint.point[1],
                "checkpoint": checkpoint.prefix,
                "num_bytes": checkpoint.num_bytes,
                "is_whole": checkpoint.is_whole,
            }
            for checkpoint in sorted(doomed, key=_POINT)
        ],
        "num_bytes": sum(checkpoint.num_bytes for checkpoint in doomed),
        "aborted_uploads": aborted,
    }
