"""A model as what has to be added to its base, so that nobody can use it who lacks the base.

Bit patterns are subtracted as unsigned integers modulo 2^n: base + delta is the release to the bit,
which a difference of floats is not. Two blocks of a tensor and their sum are in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from checkpoints.delta_record import (
    DELTA_NAME,
    BaseTensor,
    DeltaRecord,
    DeltaTensor,
    read_record,
    write_record,
)
from checkpoints.errors import Damaged, RecordInvalid
from checkpoints.inspect import Progress, ignore_progress
from checkpoints.manifest import DTYPE_SIZES
from checkpoints.tensor_files import (
    WEIGHTS_STEM,
    StoredTensor,
    TensorSpec,
    find_files,
    make_header,
    names_of,
    read_file,
    read_folder,
    write_index,
)

# Not the name of weights: nothing may load a delta as if it were a model.
DELTA_STEM = "delta"


def write_delta(
    base: Path,
    release: Path,
    output: Path,
    *,
    base_name: str,
    whole: Collection[str] = (),
    progress: Progress = ignore_progress,
) -> DeltaRecord:
    """Write the delta of a release to the folder `output`, in files like the release's.

    `whole` names tensors that the base lacks, to be published as they are. `progress` is told the
    release's bytes. Raises RecordInvalid where the two do not fit, before anything is written.
    """
    released = {name: one.spec for name, one in read_folder(release).items()}
    check_fit(base, released, whole)
    bases = read_folder(base)
    tensors: dict[str, DeltaTensor] = {}

    def write_tensor(file: BinaryIO, name: str, one: StoredTensor) -> None:
        tensors[name] = _subtract(one, bases.get(name), file, progress)

    _write_files(find_files(release), output, (WEIGHTS_STEM, DELTA_STEM), write_tensor)
    record = DeltaRecord(base=base_name, tensors=tensors)
    write_record(record, output)
    return record


def check_base(base: Path, delta: Path, progress: Progress = ignore_progress) -> None:
    """Read every byte that the delta rests on; `progress` is told them.

    Raises RecordInvalid at the first tensor that is not the one which the delta was made from.
    """
    record, bases = read_record(delta), read_folder(base)
    for name, wanted in record.tensors.items():
        if wanted.base is None:
            continue
        known, digest = bases.get(name), hashlib.sha256()
        if known is not None:
            for block in _hashed(known.blocks(), digest):
                progress(len(block))
        if known is None or not wanted.is_based_on(known.spec, digest.hexdigest()):
            what = "is missing" if known is None else "differs"
            raise RecordInvalid(
                f"{base} is not the base of this delta: its {name} {what}.",
                f"The delta was made from {record.base}: get exactly that.",
            )


def apply_delta(
    base: Path, delta: Path, output: Path, progress: Progress = ignore_progress
) -> list[str]:
    """Write the release to the folder `output` and return the files' names.

    `progress` is told the release's bytes. Call `check_base` first; a byte that is wrong all the
    same raises Damaged, and then `output` is of no use.
    """
    record, bases = read_record(delta), read_folder(base)
    if set(read_folder(delta, DELTA_STEM)) != set(record.tensors):
        raise RecordInvalid(
            f"{delta} holds other tensors than its {DELTA_NAME} names.", "Download it again."
        )

    def write_tensor(file: BinaryIO, name: str, one: StoredTensor) -> None:
        wanted = record.tensors[name]
        known = None if wanted.base is None else bases[name]
        if not wanted.is_spec(one.spec) or _add(one, known, file, progress) != wanted.sha256:
            raise Damaged(
                f"{one.path} is damaged: {name} does not become what was released.",
                "Download the delta again.",
            )

    files = find_files(delta, DELTA_STEM)
    return _write_files(files, output, (DELTA_STEM, WEIGHTS_STEM), write_tensor)


def num_base_bytes(base: Path, delta: Path) -> int:
    """Return how much `check_base` reads; raise RecordInvalid."""
    found = read_folder(base)
    needed = (name for name, one in read_record(delta).tensors.items() if one.base is not None)
    return sum(found[name].spec.num_bytes for name in needed if name in found)


def num_bytes(folder: Path, stem: str = WEIGHTS_STEM) -> int:
    """Return the size of a folder's tensors; raise RecordInvalid."""
    return sum(one.spec.num_bytes for one in read_folder(folder, stem).values())


def check_fit(base: Path, released: Mapping[str, TensorSpec], whole: Collection[str]) -> None:
    """Refuse what would publish weights that work without the base, unless it is asked for.

    Reads headers alone; raises RecordInvalid.
    """
    bases = read_folder(base)
    lacking = [name for name in released if name not in bases and name not in whole]
    if lacking:
        raise RecordInvalid(
            f"{base} lacks {names_of(lacking)}, which would be published whole.",
            "Give the model that was trained from, or allow each: --whole NAME.",
        )
    for name, spec in released.items():
        if name in bases:
            _check_pair(name, base, bases[name].spec, spec)


def _check_pair(name: str, base: Path, known: TensorSpec, released: TensorSpec) -> None:
    if known.dtype != released.dtype:
        raise RecordInvalid(
            f"{name} is {known.dtype} in {base} and {released.dtype} in the release: "
            "only bit patterns of one kind can be subtracted.",
            "Release it in the base's: --dtype float16 (F16), bfloat16 (BF16), float32 (F32).",
        )
    is_same_rank = len(known.shape) == len(released.shape)
    if not is_same_rank or known.shape[1:] != released.shape[1:]:
        raise RecordInvalid(
            f"{name} is {list(known.shape)} in {base} and {list(released.shape)} in the release.",
            "Give the model that was trained from.",
        )


def _write_files(
    files: Iterable[Path],
    output: Path,
    stems: tuple[str, str],
    write_tensor: Callable[[BinaryIO, str, StoredTensor], None],
) -> list[str]:
    """Write a file for each, with its header and the other stem, and their index; return names."""
    written: dict[str, dict[str, TensorSpec]] = {}
    for path in files:
        held = read_file(path)
        specs = {name: one.spec for name, one in held.items()}
        name_there = stems[1] + path.name.removeprefix(stems[0])
        written[name_there] = specs
        with (output / name_there).open("wb") as file:
            file.write(make_header(specs))
            for name, one in held.items():
                write_tensor(file, name, one)
    if len(written) == 1:
        return list(written)
    return [*written, write_index(output, written, stems[1]).name]


def _subtract(
    one: StoredTensor, known: StoredTensor | None, file: BinaryIO, progress: Progress
) -> DeltaTensor:
    released, based = hashlib.sha256(), hashlib.sha256()
    under = iter(()) if known is None else _hashed(known.blocks(), based)
    for block in _hashed(one.blocks(), released):
        file.write(_combine(np.subtract, one.spec, block, next(under, b"")))
        progress(len(block))
    for _ in under:
        pass  # rows that the release lacks are hashed with the rest
    return DeltaTensor(
        dtype=one.spec.dtype,
        shape=one.spec.shape,
        sha256=released.hexdigest(),
        base=None
        if known is None
        else BaseTensor(shape=known.spec.shape, sha256=based.hexdigest()),
    )


def _add(one: StoredTensor, known: StoredTensor | None, file: BinaryIO, progress: Progress) -> str:
    """Write the sum and return its sha256."""
    digest = hashlib.sha256()
    under = iter(()) if known is None else known.blocks()
    for block in one.blocks():
        restored = _combine(np.add, one.spec, block, next(under, b""))
        digest.update(restored)
        file.write(restored)
        progress(len(block))
    return digest.hexdigest()


def _hashed(blocks: Iterable[bytes], digest: Any) -> Iterator[bytes]:  # noqa: ANN401  # hashlib's
    for block in blocks:
        digest.update(block)
        yield block


def _combine(operation: np.ufunc, spec: TensorSpec, block: bytes, under: bytes) -> bytes:
    """Add to, or subtract from, as many words as the base has; the rest stays."""
    kind = np.dtype(f"<u{DTYPE_SIZES[spec.dtype]}")
    words, others = np.frombuffer(block, kind), np.frombuffer(under[: len(block)], kind)
    head = operation(words[: len(others)], others)
    return bytes(head.tobytes()) + words[len(others) :].tobytes()
