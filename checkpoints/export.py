"""Write a checkpoint's weights as Hugging Face safetensors, one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from checkpoints.inspect import Progress, holder_of, ignore_progress, read_tensor
from checkpoints.manifest import Manifest
from checkpoints.store import ObjectStore

# The size at which Hugging Face splits weights too; a file of this size still fits most caches.
MAX_FILE_BYTES = 5 * 10**9
INDEX_NAME = "model.safetensors.index.json"


def export_weights(
    store: ObjectStore,
    manifest: Manifest,
    *,
    prefix: str,
    folder: Path,
    max_file_bytes: int = MAX_FILE_BYTES,
    progress: Progress = ignore_progress,
) -> list[str]:
    """Write the tensors whose name starts with `prefix` (left out) and return the files' names.

    Every byte is verified on the way. Raises Damaged, ObjectMissing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(name for name in manifest.tensors if name.startswith(prefix))
    holder = holder_of(store, manifest)
    groups = list(_group(manifest, names, max_file_bytes))
    files = [_file_name(number, len(groups)) for number in range(1, len(groups) + 1)]
    for file, group in zip(files, groups, strict=True):
        _write_file(holder, manifest, group, prefix, folder / file, progress)
    if len(files) > 1:
        _write_index(manifest, dict(zip(files, groups, strict=True)), prefix, folder / INDEX_NAME)
        files.append(INDEX_NAME)
    return files


def _group(manifest: Manifest, names: list[str], max_file_bytes: int) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for name in names:
        if group and size + manifest.tensors[name].num_bytes > max_file_bytes:
            yield group
            group, size = [], 0
        group.append(name)
        size += manifest.tensors[name].num_bytes
    yield group


def _file_name(number: int, num_files: int) -> str:
    if num_files == 1:
        return "model.safetensors"
    return f"model-{number:05d}-of-{num_files:05d}.safetensors"


def _write_file(
    store: ObjectStore,
    manifest: Manifest,
    names: list[str],
    prefix: str,
    path: Path,
    progress: Progress,
) -> None:
    """Write the format's 8-byte header length, JSON header and raw bytes (safetensors README)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        record = manifest.tensors[name]
        end = offset + manifest.tensors[name].num_bytes
        header[name.removeprefix(prefix)] = {
            "dtype": record.dtype,
            "shape": list(record.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(read_tensor(store, manifest, name))
            progress(manifest.tensors[name].num_bytes)


def _write_index(manifest: Manifest, files: dict[str, list[str]], prefix: str, path: Path) -> None:
    placed = {name.removeprefix(prefix): file for file, group in files.items() for name in group}
    total = sum(manifest.tensors[name].num_bytes for group in files.values() for name in group)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    path.write_text(json.dumps(index, indent=1))
