"""`orchestrate checkpoints list|verify|export`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from checkpoints.errors import ObjectMissing, RecordInvalid
from checkpoints.export import export_weights
from checkpoints.fence import read_head
from checkpoints.inspect import compare, read_manifest
from checkpoints.inspect import verify as verify_bytes
from checkpoints.layout import CHECKPOINTS, parse_checkpoint_prefix
from checkpoints.manifest import Manifest
from checkpoints.store import ObjectStore
from orchestrator.cli.common import json_option, print_json, say, store_option
from orchestrator.errors import RecordUnreadable, UnknownRun, UsageError
from orchestrator.inputs import fetch_inputs
from orchestrator.ledger.record import RunRecord, read_record
from orchestrator.runs import find_run

# What a checkpoint holds besides the weights differs between runs that compute the same model.
_WEIGHTS = "model."
# Files of the inputs that make exported weights a model which others can load.
_MODEL_FILES = ("config.json", "generation_config.json")


@click.group()
def checkpoints() -> None:
    """List, verify and export the checkpoints of a run."""


@checkpoints.command("list")
@click.argument("run")
@store_option
@json_option
def list_(run: str, store: str | None, *, as_json: bool) -> None:
    """List the committed checkpoints of RUN; the one that HEAD names is the last."""
    folder = _open_run(run, store)
    head = read_head(folder)
    current = head[0].manifest if head is not None else None
    rows = [_row(manifest, current) for manifest in _manifests(folder)]
    if rows and not any(row["is_head"] for row in rows):
        say(f"HEAD names {current}, which is not among them: nothing can be resumed from.")
    if as_json:
        print_json({"schema_version": 1, "run": run, "head": current, "checkpoints": rows})
        return
    for row in rows:
        mark = "  <- HEAD" if row["is_head"] else ""
        print(
            f"step {row['step']:<8} attempt {row['attempt']:<4} {row['num_bytes'] / 1e6:>10.1f} MB"
            f"  {row['created_at']}  {row['manifest']}{mark}"
        )
    if not rows:
        say(f"{run} has committed no checkpoint yet.")


@checkpoints.command()
@click.argument("run")
@click.option("--against", metavar="RUN", help="Also compare the weights with another run's.")
@store_option
@json_option
@click.pass_context
def verify(
    context: click.Context, run: str, against: str | None, store: str | None, *, as_json: bool
) -> None:
    """Read every byte of RUN's last checkpoint and check it; with --against, compare weights."""
    folder = _open_run(run, store)
    manifest = _head_manifest(folder, run)
    problems = verify_bytes(folder, manifest)
    document: dict[str, Any] = {
        "schema_version": 1,
        "run": run,
        "step": manifest.step,
        "manifest": manifest.key,
        "num_bytes": sum(entry.size for entry in manifest.objects),
        "problems": [{"object": one.object, "what": one.what} for one in problems],
    }
    if against is not None:
        document["against"] = _compare_with(folder, manifest, against, store)
    if as_json:
        print_json(document)
    else:
        _print_verdict(document)
    if problems or document.get("against", {}).get("differing"):
        context.exit(1)


@checkpoints.command()
@click.argument("run")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder to write; it must not hold a model yet.",
)
@store_option
def export(run: str, output: Path, store: str | None) -> None:
    """Write RUN's last checkpoint as a Hugging Face folder (safetensors, config, tokenizer)."""
    folder = _open_run(run, store)
    manifest = _head_manifest(folder, run)
    record = read_record(folder)
    assert record is not None
    if (output / "config.json").exists():
        raise UsageError(f"{output} holds a model already.", "Choose another folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        partial = Path(scratch) / "model"
        names = export_weights(folder, manifest, prefix=_WEIGHTS, folder=partial)
        _copy_model_files(folder, record, partial)
        # All or nothing: a damaged checkpoint leaves no half of a model behind.
        output.mkdir(exist_ok=True)
        for path in partial.iterdir():
            path.rename(output / path.name)
    say(f"Wrote step {manifest.step} to {output}: {', '.join(names)}.")


def _open_run(run: str, store: str | None) -> ObjectStore:
    folder = find_run(run, store).open()
    if read_record(folder) is None:
        raise UnknownRun(f"{folder.url} holds no run.", "See what is known: orchestrate status")
    return folder


def _manifests(folder: ObjectStore) -> Iterator[Manifest]:
    """Yield the manifests that can be read; a damaged one is named and does not hide the rest."""
    for entry in folder.list(CHECKPOINTS):
        if not entry.key.endswith("/manifest.json") or not parse_checkpoint_prefix(entry.key):
            continue
        try:
            yield read_manifest(folder, entry.key)
        except (RecordInvalid, ObjectMissing) as error:
            say(f"{entry.key} cannot be used: {error.what}")


def _row(manifest: Manifest, current: str | None) -> dict[str, Any]:
    return {
        "step": manifest.step,
        "attempt": manifest.attempt,
        "manifest": manifest.key,
        "num_bytes": sum(entry.size for entry in manifest.objects),
        "world_size": manifest.world_size,
        "created_at": manifest.created_at.isoformat(timespec="seconds"),
        "is_head": manifest.key == current,
    }


def _head_manifest(folder: ObjectStore, run: str) -> Manifest:
    head = read_head(folder)
    if head is None or head[0].manifest is None:
        raise UnknownRun(f"{run} has committed no checkpoint.", f"See orchestrate status {run}")
    return read_manifest(folder, head[0].manifest)


def _compare_with(
    folder: ObjectStore, manifest: Manifest, other: str, store: str | None
) -> dict[str, Any]:
    other_folder = find_run(other, store).open()
    other_manifest = _head_manifest(other_folder, other)
    differing = compare(
        folder,
        manifest,
        other_folder,
        other_manifest,
        ignore=lambda name: not name.startswith(_WEIGHTS),
    )
    weights = [name for name in manifest.tensors if name.startswith(_WEIGHTS)]
    return {
        "run": other,
        "step": other_manifest.step,
        "num_tensors": len(weights),
        "differing": differing,
    }


def _print_verdict(document: dict[str, Any]) -> None:
    size = document["num_bytes"] / 1e6
    verdict = (
        f"{len(document['problems'])} problems" if document["problems"] else "every byte is right"
    )
    print(f"{document['manifest']} ({size:.1f} MB): {verdict}")
    for problem in document["problems"]:
        print(f"  {problem['object']} {problem['what']}")
    against = document.get("against")
    if against is not None:
        equal = f"{against['num_tensors']} weight tensors equal bit for bit"
        differ = f"weights differ: {', '.join(against['differing'][:5])}"
        print(f"against {against['run']}: {differ if against['differing'] else equal}")


def _copy_model_files(folder: ObjectStore, record: RunRecord, output: Path) -> None:
    wanted = tuple(
        file
        for file in record.inputs
        if file.name in _MODEL_FILES or file.name.startswith("tokenizer")
    )
    if not any(file.name == "config.json" for file in wanted):
        raise RecordUnreadable(
            f"{folder.url} has no staged config.json.", "Launch the run again to stage its inputs."
        )
    fetch_inputs(wanted, folder, output)
