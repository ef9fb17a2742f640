"""`orchestrate checkpoints list|verify`; retention.py says what stays, releasing.py exports it."""

from __future__ import annotations

from typing import Any

import click

from checkpoints.errors import ObjectMissing, RecordInvalid
from checkpoints.fence import read_head
from checkpoints.history import Point, whole_checkpoints
from checkpoints.inspect import compare, read_manifest
from checkpoints.inspect import verify as verify_bytes
from checkpoints.layout import manifest_key
from checkpoints.manifest import Head, Manifest
from checkpoints.retention import read_pins
from checkpoints.store import ObjectStore
from orchestrator.cli.common import (
    examples,
    json_option,
    plain,
    print_json,
    progress,
    say,
    store_option,
)
from orchestrator.cli.completion import complete_run
from orchestrator.cli.releasing import apply_delta, export
from orchestrator.cli.retention import pin, prune, show_size, unpin
from orchestrator.exporting import WEIGHTS, find_manifest, num_weight_bytes, open_run
from orchestrator.runs import find_run


@click.group(
    epilog=examples(
        "orchestrate checkpoints list vicuna-7b",
        "orchestrate checkpoints export vicuna-7b --output vicuna-7b",
    )
)
def checkpoints() -> None:
    """List, verify, prune, pin and export the checkpoints of a run, or apply a delta."""


checkpoints.add_command(prune)
checkpoints.add_command(pin)
checkpoints.add_command(unpin)
checkpoints.add_command(export)
checkpoints.add_command(apply_delta)


@checkpoints.command(
    "list",
    short_help="List the committed checkpoints of a run.",
    epilog=examples("orchestrate checkpoints list vicuna-7b"),
)
@click.argument("run", shell_complete=complete_run)
@store_option
@json_option
def list_(run: str, store: str | None, *, as_json: bool) -> None:
    """List the committed checkpoints of RUN by step; HEAD is what the run resumes from."""
    folder, _ = open_run(run, store)
    found = read_head(folder)
    head = None if found is None else found[0]
    manifests, unusable = _read_manifests(folder)
    for key, what in unusable.items():
        say(f"{key} cannot be used: {what}")
    pins = read_pins(folder)
    rows = [_row(manifest, head, pins) for manifest in manifests]
    if rows and not any(row["is_head"] for row in rows):
        say(f"HEAD names {head and head.manifest}, which is not among them.")
    if as_json:
        current = None if head is None else head.manifest
        print_json({"schema_version": 1, "run": run, "head": current, "checkpoints": rows})
        return
    for row in rows:
        print(_line(row))
    if not rows:
        say(f"{run} has committed no checkpoint yet.")


@checkpoints.command(
    short_help="Check every byte of a run's checkpoint.",
    epilog=examples(
        "orchestrate checkpoints verify vicuna-7b --all",
        "orchestrate checkpoints verify quickstart --against calm",
    ),
)
@click.argument("run", shell_complete=complete_run)
@click.option("--step", type=click.IntRange(min=0), metavar="N", help="Check this step's instead.")
@click.option("--all", "is_all", is_flag=True, help="Check every checkpoint.")
@click.option("--against", metavar="RUN", help="Also compare the weights with another run's last.")
@store_option
@json_option
@click.pass_context
def verify(
    context: click.Context,
    run: str,
    step: int | None,
    against: str | None,
    store: str | None,
    *,
    is_all: bool,
    as_json: bool,
) -> None:
    """Read every byte of RUN's last checkpoint and check it; with --against, compare weights."""
    if is_all and (step is not None or against is not None):
        raise click.UsageError("--all goes with neither --step nor --against.")
    folder, _ = open_run(run, store)
    document: dict[str, Any] = {"schema_version": 1, "run": run}
    if is_all:
        verdicts = document["checkpoints"] = _verify_all(folder)
    else:
        manifest = find_manifest(folder, run, step)
        document |= _verify(folder, manifest)
        verdicts = [document]
        if against is not None:
            document["against"] = _compare_with(folder, manifest, against, store)
    if as_json:
        print_json(document)
    else:
        for verdict in verdicts:
            _print_verdict(verdict)
    if any(verdict["problems"] for verdict in verdicts) or _differs(document):
        context.exit(1)


def _read_manifests(folder: ObjectStore) -> tuple[list[Manifest], dict[str, str]]:
    """Return the manifests by step, and what is wrong with each that cannot be read."""
    manifests, unusable = [], {}
    for point in sorted(whole_checkpoints(folder)):
        key = manifest_key(*point)
        try:
            manifests.append(read_manifest(folder, key))
        except (RecordInvalid, ObjectMissing) as error:
            unusable[key] = error.what
    return manifests, unusable


def _row(manifest: Manifest, head: Head | None, pins: frozenset[Point]) -> dict[str, Any]:
    return {
        "step": manifest.step,
        "attempt": manifest.attempt,
        "manifest": manifest.key,
        "store": manifest.store,
        "num_bytes": manifest.num_bytes,
        "world_size": manifest.world_size,
        "created_at": manifest.created_at.isoformat(timespec="seconds"),
        "is_head": head is not None and manifest.key == head.manifest,
        "is_parent": head is not None and manifest.key == head.parent,
        "is_pinned": (manifest.step, manifest.attempt) in pins,
    }


def _line(row: dict[str, Any]) -> str:
    names = {"is_head": "HEAD", "is_parent": "parent", "is_pinned": "pinned"}
    marks = ", ".join(name for key, name in names.items() if row[key])
    where = f"{row['store']}/" if row["store"] else ""
    return (
        f"step {row['step']:<8} attempt {row['attempt']:<4} {show_size(row['num_bytes']):>10}"
        f"  {row['created_at']}  {where}{row['manifest']}{f'  <- {marks}' if marks else ''}"
    )


def _verify_all(folder: ObjectStore) -> list[dict[str, Any]]:
    manifests, unusable = _read_manifests(folder)
    broken = [
        {"manifest": key, "num_bytes": 0, "problems": [{"object": key, "what": what}]}
        for key, what in unusable.items()
    ]
    return [_verify(folder, manifest) for manifest in manifests] + broken


def _verify(folder: ObjectStore, manifest: Manifest) -> dict[str, Any]:
    say(f"Reading {manifest.key.rpartition('/')[0]} ({show_size(manifest.num_bytes)}) ...")
    with progress("Reading", manifest.num_bytes) as advance:
        problems = verify_bytes(folder, manifest, advance)
    return {
        "step": manifest.step,
        "manifest": manifest.key,
        "num_bytes": manifest.num_bytes,
        "problems": [{"object": one.object, "what": one.what} for one in problems],
    }


def _differs(document: dict[str, Any]) -> bool:
    return bool(document.get("against", {}).get("differing"))


def _compare_with(
    folder: ObjectStore, manifest: Manifest, other: str, store: str | None
) -> dict[str, Any]:
    other_folder = find_run(other, store).open()
    other_manifest = find_manifest(other_folder, other, None)
    weights = [name for name in manifest.tensors if name.startswith(WEIGHTS)]
    with progress("Comparing", num_weight_bytes(manifest)) as advance:
        differing = compare(
            folder,
            manifest,
            other_folder,
            other_manifest,
            ignore=lambda name: not name.startswith(WEIGHTS),
            progress=advance,
        )
    return {
        "run": other,
        "step": other_manifest.step,
        "num_tensors": len(weights),
        "differing": differing,
    }


def _print_verdict(document: dict[str, Any]) -> None:
    verdict = (
        f"{len(document['problems'])} problems" if document["problems"] else "every byte is right"
    )
    print(f"{document['manifest']} ({show_size(document['num_bytes'])}): {verdict}")
    for problem in document["problems"]:
        print(plain(f"  {problem['object']} {problem['what']}"))
    against = document.get("against")
    if against is not None:
        equal = f"{against['num_tensors']} weight tensors equal bit for bit"
        differ = f"weights differ: {', '.join(against['differing'][:5])}"
        print(plain(f"against {against['run']}: {differ if against['differing'] else equal}"))
