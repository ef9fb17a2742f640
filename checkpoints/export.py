"""Write a checkpoint's weights as Hugging Face safetensors, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from checkpoints.casting import cast, cast_dtype
from checkpoints.inspect import Progress, holder_of, ignore_progress, read_tensor
from checkpoints.manifest import Manifest
from checkpoints.store import ObjectStore
from checkpoints.tensor_files import (
    WEIGHTS_STEM,
    TensorSpec,
    file_name,
    make_header,
    write_index,
)

# The size at which Hugging Face splits weights too; a file of this size still fits most caches.
MAX_FILE_BYTES = 5 * 10**9


def export_weights(
    store: ObjectStore,
    manifest: Manifest,
    *,
    prefix: str,
    folder: Path,
    dtype: str | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    progress: Progress = ignore_progress,
) -> list[str]:
    """Write the tensors whose name starts with `prefix` (left out) and return the files' names.

    Every byte is verified on the way. `dtype` is one of safetensors' names; None keeps the
    checkpoint's. Raises Damaged, ObjectMissing, and RecordInvalid for what cannot be cast.
    """
    folder.mkdir(parents=True, exist_ok=True)
    specs = released_specs(manifest, prefix, dtype)
    holder = holder_of(store, manifest)
    groups = list(_group(specs, max_file_bytes))
    files = {}
    for number, group in enumerate(groups, 1):
        file = file_name(WEIGHTS_STEM, number, len(groups))
        files[file] = {name: specs[name] for name in group}
        with (folder / file).open("wb") as output:
            output.write(make_header(files[file]))
            for name in group:
                record = manifest.tensors[prefix + name]
                whole = read_tensor(holder, manifest, prefix + name)
                output.write(cast(name, whole, record.dtype, specs[name].dtype))
                progress(record.num_bytes)
    if len(files) == 1:
        return list(files)
    return [*files, write_index(folder, files, WEIGHTS_STEM).name]


def released_specs(manifest: Manifest, prefix: str, dtype: str | None) -> dict[str, TensorSpec]:
    """Return what `export_weights` writes, in its order; raise RecordInvalid."""
    return {
        name.removeprefix(prefix): TensorSpec(
            dtype=record.dtype if dtype is None else cast_dtype(name, record.dtype, dtype),
            shape=record.shape,
        )
        for name, record in sorted(manifest.tensors.items())
        if name.startswith(prefix)
    }


def _group(specs: Mapping[str, TensorSpec], max_file_bytes: int) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for name, spec in specs.items():
        if group and size + spec.num_bytes > max_file_bytes:
            yield group
            group, size = [], 0
        group.append(name)
        size += spec.num_bytes
    yield group
