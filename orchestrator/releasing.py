"""A run's checkpoint as a delta against its base, and what others make of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoints.delta import apply_delta, check_base, check_fit, write_delta
from checkpoints.export import released_specs
from checkpoints.inspect import Progress, ignore_progress
from checkpoints.manifest import Manifest
from checkpoints.store import ObjectStore
from orchestrator.errors import UsageError
from orchestrator.exporting import (
    CARD_NAME,
    CONFIG_NAME,
    WEIGHTS,
    export_model,
    is_model_file,
    whole_folder,
)
from orchestrator.ledger.record import RunRecord


def export_delta(
    folder: ObjectStore,
    record: RunRecord,
    manifest: Manifest,
    output: Path,
    base: tuple[Path, str],
    progress: Progress = ignore_progress,
    *,
    dtype: str | None,
    whole: tuple[str, ...],
    card: str,
) -> list[str]:
    """Write a checkpoint as a delta and return the names of its files; all or nothing.

    `base` is its folder and its name for people. The release itself lies beside `output` meanwhile.
    `progress` is told each byte twice: once written, once subtracted. Raises what `export_model`
    and `write_delta` raise.
    """
    # Before the release is written, which takes long.
    check_fit(base[0], released_specs(manifest, WEIGHTS, dtype), whole)
    with whole_folder(output) as partial, _scratch(output) as scratch:
        release = scratch / "release"
        export_model(folder, record, manifest, release, progress, dtype=dtype)
        write_delta(base[0], release, partial, base_name=base[1], whole=whole, progress=progress)
        names = sorted(path.name for path in partial.iterdir())
        _copy_model_files(release, partial)
        (partial / CARD_NAME).write_text(card, encoding="utf-8")
    return names


def restore_release(
    base: Path, delta: Path, output: Path, progress: Progress = ignore_progress
) -> list[str]:
    """Write base + delta as a Hugging Face folder and return the weights' files; all or nothing.

    `progress` is told each byte of the base, then each of the release. Raises RecordInvalid for
    another base, before anything is written, and Damaged for a damaged delta.
    """
    if not (delta / CONFIG_NAME).is_file():
        raise UsageError(f"{delta} holds no {CONFIG_NAME}.", "Give the whole folder of the delta.")
    check_base(base, delta, progress)
    with whole_folder(output) as partial:
        names = apply_delta(base, delta, partial, progress)
        _copy_model_files(delta, partial)
    return names


def _copy_model_files(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if is_model_file(path.name):
            shutil.copyfile(path, target / path.name)


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """Yield a folder on the disk of `output`, which is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        yield Path(scratch)
