"""A run's checkpoint as a Hugging Face folder, for whoever evaluates, serves or releases it."""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from checkpoints.casting import RELEASE_DTYPES
from checkpoints.export import export_weights, released_specs
from checkpoints.fence import read_head
from checkpoints.history import Point, committed_at
from checkpoints.inspect import Progress, ignore_progress, read_manifest
from checkpoints.layout import checkpoint_name, manifest_key
from checkpoints.manifest import Manifest
from checkpoints.store import ObjectStore
from orchestrator.errors import RecordUnreadable, UnknownRun, UsageError
from orchestrator.home import home, make_folder
from orchestrator.inputs import fetch_inputs
from orchestrator.ledger.record import RunRecord, read_record
from orchestrator.runs import KnownRun, find_run

# What a checkpoint holds besides the weights differs between runs that compute the same model.
WEIGHTS = "model."
CONFIG_NAME, CARD_NAME = "config.json", "README.md"
# Files of the inputs that make exported weights a model which others can load.
_MODEL_FILES = (CONFIG_NAME, "generation_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A run's checkpoint as a Hugging Face folder on this machine."""

    folder: Path
    run: str
    run_id: str
    step: int
    attempt: int


def open_run(run: str, store: str | None) -> tuple[ObjectStore, RunRecord]:
    """Return the run folder and its record; raise UnknownRun."""
    return open_known(find_run(run, store))


def open_known(run: KnownRun) -> tuple[ObjectStore, RunRecord]:
    """Return the run folder and its record; raise UnknownRun where there is none."""
    folder = run.open()
    record = read_record(folder)
    if record is None:
        raise UnknownRun(f"{folder.url} holds no run.", "See what is known: orchestrate status")
    return folder, record


def find_step(folder: ObjectStore, run: str, step: int) -> Point:
    """Return the run's checkpoint of this step, of its last attempt that has one."""
    point = committed_at(folder, step)
    if point is None:
        raise no_such_step(run, step)
    return point


def no_such_step(run: str, step: int) -> UsageError:
    """Return the error for a step that has no checkpoint."""
    return UsageError(
        f"{run} has no checkpoint of step {step}.", f"See: orchestrate checkpoints list {run}"
    )


def find_manifest(folder: ObjectStore, run: str, step: int | None) -> Manifest:
    """Return the manifest of this step, or the one that HEAD names.

    Raises:
        UsageError: there is no such checkpoint.
    """
    if step is not None:
        return read_manifest(folder, manifest_key(*find_step(folder, run, step)))
    head = read_head(folder)
    if head is None or head[0].manifest is None:
        raise UnknownRun(f"{run} has committed no checkpoint.", f"See orchestrate status {run}")
    return read_manifest(folder, head[0].manifest)


def num_weight_bytes(manifest: Manifest) -> int:
    """Return the size of the weights alone, without what only training needs."""
    return sum(
        record.num_bytes for name, record in manifest.tensors.items() if name.startswith(WEIGHTS)
    )


def release_dtypes(manifest: Manifest, dtype: str | None) -> str:
    """Return what a release's weights are, by safetensors' names; raise RecordInvalid."""
    specs = released_specs(manifest, WEIGHTS, dtype)
    return ", ".join(sorted({one.dtype for one in specs.values()}))


def export_model(
    folder: ObjectStore,
    record: RunRecord,
    manifest: Manifest,
    output: Path,
    progress: Progress = ignore_progress,
    *,
    dtype: str | None = None,
    card: str | None = None,
) -> list[str]:
    """Write a checkpoint as a Hugging Face folder and return the names of the weights' files.

    All or nothing: a damaged checkpoint leaves no half of a model behind. `dtype` is one of
    safetensors' names, None the checkpoint's own; `card` becomes README.md.

    Raises:
        UsageError: `output` holds a model already.
        Damaged: a byte of the checkpoint differs.
        RecordInvalid: the weights cannot be cast.
        RecordUnreadable: the run's inputs hold no model configuration.
    """
    with whole_folder(output) as partial:
        names = export_weights(
            folder, manifest, prefix=WEIGHTS, folder=partial, dtype=dtype, progress=progress
        )
        _copy_model_files(folder, record, partial)
        if dtype is not None:
            _declare_dtype(partial / CONFIG_NAME, dtype)
        if card is not None:
            (partial / CARD_NAME).write_text(card, encoding="utf-8")
    return names


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Yield a folder beside `output` whose files move there at the end, if it is reached.

    Raises:
        UsageError: `output` holds a model already, or files of those names, or cannot be written.
    """
    try:
        with _beside(output) as partial:
            yield partial
    except OSError as error:
        raise UsageError(
            f"{output} cannot be written: {error.strerror or error}.",
            "Choose another folder, or make room.",
        ) from error


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    if (output / CONFIG_NAME).exists():
        raise UsageError(f"{output} holds a model already.", "Choose another folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        partial = Path(scratch) / "model"
        partial.mkdir()
        yield partial
        # config.json last: with it the folder is a model.
        paths = sorted(partial.iterdir(), key=lambda path: path.name == CONFIG_NAME)
        in_the_way = [path.name for path in paths if (output / path.name).exists()]
        if in_the_way:
            raise UsageError(f"{output} has a {in_the_way[0]} already.", "Choose another folder.")
        output.mkdir(exist_ok=True)
        for path in paths:
            path.rename(output / path.name)


def exported(
    run: KnownRun, step: int | None = None, progress: Progress = ignore_progress
) -> Export:
    """Return this machine's copy of a run's checkpoint as a Hugging Face folder, made once.

    Raises what `export_model` and `find_manifest` raise.
    """
    folder, record = open_known(run)
    manifest = find_manifest(folder, run.run, step)
    name = checkpoint_name(manifest.step, manifest.attempt)
    # record.run_id: a deleted run and the next of its name have the same key.
    output = home() / "exports" / f"{run.key}-{record.run_id}" / name
    make_folder(output.parent)
    with output.with_suffix(".lock").open("w") as lock:
        # An evaluation beside a server: the second waits, and finds what the first has exported.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (output / CONFIG_NAME).exists():
            export_model(folder, record, manifest, output, progress)
    return Export(
        folder=output,
        run=run.run,
        run_id=record.run_id,
        step=manifest.step,
        attempt=manifest.attempt,
    )


def forget_exports(run: KnownRun) -> None:
    """Delete this machine's copies of a run's checkpoints."""
    for folder in (home() / "exports").glob(f"{run.key}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def is_model_file(name: str) -> bool:
    """Say whether a file is one that makes weights a model which others can load."""
    return name in _MODEL_FILES or name.startswith("tokenizer")


def _copy_model_files(folder: ObjectStore, record: RunRecord, output: Path) -> None:
    wanted = tuple(file for file in record.inputs if is_model_file(file.name))
    if not any(file.name == CONFIG_NAME for file in wanted):
        raise RecordUnreadable(
            f"{folder.url} has no staged config.json.", "Launch the run again to stage its inputs."
        )
    fetch_inputs(wanted, folder, output)


def _declare_dtype(config: Path, dtype: str) -> None:
    """Have loaders that ask for `dtype="auto"` take the weights as they are."""
    fields = json.loads(config.read_text(encoding="utf-8"))
    fields.pop("torch_dtype", None)  # what transformers called it before 5
    fields["dtype"] = next(name for name, one in RELEASE_DTYPES.items() if one == dtype)
    config.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
