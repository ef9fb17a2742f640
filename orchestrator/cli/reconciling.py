"""`orchestrate cost RUN --reconcile`: what clouds billed, beside what was computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click

from checkpoints.store import ObjectStore
from orchestrator.billing.tags import RUN_TAG
from orchestrator.cli.common import confirm, say
from orchestrator.clock import SystemClock
from orchestrator.errors import UsageError
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.readers import is_read_by_older
from orchestrator.runs import KnownRun
from orchestrator.view import RunView, RunViewer

Command = TypeVar("Command", bound=Callable[..., Any])

_ASK_AWS = "aws"
_WHY_NOTHING = {
    "aws": f"the tag {RUN_TAG} is not activated as a cost allocation tag in AWS Billing (it counts "
    "from then on)",
    "gcp": "labels were left out of the export",
}


def reconcile_option(command: Command) -> Command:
    """Add --reconcile."""
    return click.option(
        "--reconcile",
        "sources",
        multiple=True,
        metavar="SOURCE",
        help="Compare with what the cloud billed: aws asks Cost Explorer ($0.01 per request); a "
        "path or URL is a file of AWS' or Google's billing export. Several files add up.",
    )(command)


def read_bills(known: KnownRun, sources: Sequence[str], *, yes: bool) -> None:
    """Read what was billed for a run, and write it into the run's ledger.

    Raises:
        UsageError: no cloud can have billed this run, or a file is not understood.
        CloudRefused: Cost Explorer does not answer.
    """
    folder, clock = known.open(), SystemClock()
    view = RunViewer(folder).look(clock.now())
    _require_billed(view, asks_aws=_ASK_AWS in sources)
    _require_readers(folder, view)
    tallies = []
    if files := [source for source in sources if source != _ASK_AWS]:
        # Standard library only, but nobody else needs it.
        from orchestrator.billing.export_file import read_exports

        say("Reading " + ", ".join(files) + " ...")
        tallies += read_exports(files, view.record.run_id)
    if _ASK_AWS in sources:
        tallies.append(_ask_aws(view, clock.now(), yes=yes))
    journal = Journal(folder, "cli", clock)
    for tally in tallies:
        if tally.num_lines:
            journal.record(tally.fact(clock.now()))
        else:
            _say_nothing_found(", ".join(tally.sources), tally.cloud, view)
    journal.flush()


def _ask_aws(view: RunView, now: datetime, *, yes: bool) -> Any:  # noqa: ANN401  # a Tally
    from orchestrator.billing.cost_explorer import USD_PER_REQUEST, ask_bill

    confirm(
        f"Ask AWS' Cost Explorer about {view.record.run}? Each request costs ${USD_PER_REQUEST}; "
        "most runs take one.",
        yes=yes,
    )
    say(f"Asking Cost Explorer, for ${USD_PER_REQUEST} a page ...")
    return ask_bill(view.record.run_id, view.record.created_at, view.state.ended_at, now)


def _require_billed(view: RunView, *, asks_aws: bool) -> None:
    run = view.record.run
    if view.record.simulated:
        raise UsageError(
            f"{run} is simulated: no cloud has billed it.", f"See orchestrate cost {run}"
        )
    clouds = sorted({launch.offer.cloud for launch in view.state.launches})
    if asks_aws and "aws" not in clouds:
        where = ", ".join(clouds) if clouds else "no cloud yet"
        raise UsageError(
            f"{run} was on {where}, so AWS has billed no node of it.",
            f"Nothing was asked. See orchestrate cost {run}",
        )


def _require_readers(folder: ObjectStore, view: RunView) -> None:
    """An older version that carries the run out could not read on: facts that it does not know."""
    if is_read_by_older(folder, view.state):
        run = view.record.run
        raise UsageError(
            f"{run} is carried out by an earlier version, whose nodes have no tags and which could "
            "not read what is to be written.",
            f"Ask when it is over, or resume it with this version: orchestrate stop {run}",
        )


def _say_nothing_found(source: str, cloud: str, view: RunView) -> None:
    say(f"{source} has no line with the tag {RUN_TAG}={view.record.run_id}. Usual reasons:")
    say(f"- {_WHY_NOTHING[cloud]};")
    say("- lines come up to 24 h after the use;")
    say("- the run was launched by a version of orchestrate that set no tags.")


def reconciliation_lines(document: dict[str, Any] | None) -> list[str]:
    """Return what was billed beside what was computed, as people read it."""
    if document is None:
        return []
    return [line for one in document["clouds"] for line in ["", *_cloud_lines(one)]]


def _cloud_lines(one: dict[str, Any]) -> list[str]:
    read_at = datetime.fromisoformat(one["read_at"])
    lines = [
        f"What {one['cloud']} billed by {one['source']}, read {read_at:%Y-%m-%d %H:%M} UTC, "
        f"{one['start']} until before {one['end']}:",
        f"  {'part':<17}{'computed':>14}{'billed':>14}{'more':>14}",
        *(_part_line(name, pair, "usd", "$") for name, pair in one["parts"].items()),
    ]
    if one["instance_hours"] is not None:
        lines.append(_part_line("instance hours", one["instance_hours"], "hours", ""))
    if one["not_in_bill"]:
        lines.append(f"  Not in it: {', '.join(one['not_in_bill'])}; these carry no run's tag.")
    if not one["is_whole_run"]:
        lines.append("  Only what was computed for these days is compared: the run had others.")
    if one["is_last_day_incomplete"]:
        lines.append("  The last day may be incomplete: lines come up to 48 h late. Ask again.")
    return lines


def _part_line(name: str, pair: dict[str, float | None], unit: str, sign: str) -> str:
    computed, billed = pair[f"computed_{unit}"], pair[f"billed_{unit}"]
    more, fraction = pair[f"difference_{unit}"], pair["difference_fraction"]
    words = ["-" if computed is None else f"{sign}{computed:.4f}", _signed(billed, sign, "")]
    words.append("" if more is None else _signed(more, sign, "+"))
    share = "" if fraction is None else f" ({fraction:+.1%})"
    return f"  {name:<17}" + "".join(f"{word:>14}" for word in words) + share


def _signed(amount: float | None, sign: str, plus: str) -> str:
    amount = amount or 0.0
    return f"{'-' if amount < 0 else plus}{sign}{abs(amount):.4f}"
