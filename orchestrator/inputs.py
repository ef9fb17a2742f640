"""Prepare what every attempt reads (tokenized data, tokenizer, model files), once, on the laptop.

The work is the trainer's (`python -m train.data.prepare`), run as a program so that this process
imports none of its libraries. The results are staged in the run folder by content hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from checkpoints.layout import INPUTS, input_key
from checkpoints.store import ObjectStore
from orchestrator import __version__
from orchestrator.complaints import problem_of
from orchestrator.errors import InputError
from orchestrator.home import home, make_folder
from orchestrator.sources import with_local_sources
from orchestrator.spec import RunSpec

# Reading in blocks of this size keeps memory flat for weights of many GB.
_BLOCK_BYTES = 1 << 20
_FETCH_BYTES = 64 << 20
# Of the prepared files: a cache that an earlier version filled is of no use.
_LAYOUT = 2
# What long preparations say now and then; all else of theirs is for us.
_PROGRESS = "Tokenizing"
SUMMARY_NAME = "prepared.json"


def _is_plain(name: str) -> str:
    # From an object of the bucket: one with slashes would reach out of the folder on the node.
    if name in (".", "..") or "/" in name or not name.isprintable():
        raise ValueError(f"{name!r:.80} is no file's name")
    return name


class InputFile(BaseModel):
    """One staged file; `sha256` is checked by every attempt before it is used."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_is_plain)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class DroppedConversation(BaseModel):
    """A conversation that is not trained on, and why."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: str
    why: str


class PreparationSummary(BaseModel):
    """What `train.data.prepare` says of its output."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    files: tuple[str, ...]
    num_conversations: int
    num_samples: int
    num_sequences: int
    num_eval_samples: int
    num_tokens: int
    num_trained_tokens: int
    fill: float
    vocab_size: int
    dropped: tuple[DroppedConversation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedInputs:
    """Prepared files in a folder of this machine's cache."""

    folder: Path
    files: tuple[InputFile, ...]
    summary: PreparationSummary


def prepare_inputs(spec: RunSpec) -> PreparedInputs:
    """Prepare the inputs of `spec`, or find them in the cache of this machine.

    Raises:
        InputError: the data or the model folder cannot be used.
        MissingDependency: the trainer's libraries are not installed.
    """
    spec = with_local_sources(spec)
    folder = home() / "inputs" / _cache_key(spec)
    make_folder(folder.parent)
    with folder.with_suffix(".lock").open("w") as lock:
        # Two launches at once: the second waits, and finds what the first has prepared.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / SUMMARY_NAME).exists():
            _prepare_into(folder, spec)
    summary = PreparationSummary.model_validate_json((folder / SUMMARY_NAME).read_bytes())
    files = tuple(describe_file(folder / name) for name in summary.files)
    return PreparedInputs(folder=folder, files=files, summary=summary)


def stage_files(folder: Path, files: Iterable[InputFile], store: ObjectStore) -> None:
    """Upload files under their content hashes; those that are there already are left alone."""
    present = {entry.key: entry.size for entry in store.list(INPUTS)}
    for file in files:
        key = input_key(file.sha256, file.name)
        if present.get(key) != file.size:
            upload(folder / file.name, store, key)


def upload(path: Path, store: ObjectStore, key: str) -> None:
    """Upload a file of any size."""
    store.put(key, _blocks(path))


def fetch_inputs(
    files: tuple[InputFile, ...],
    store: ObjectStore,
    folder: Path,
    each_block: Callable[[], None] = lambda: None,
) -> None:
    """Download staged files into `folder` and verify each; `each_block` is told in between.

    Raises:
        InputError: a file's bytes do not match the hash that run.json names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        download(file, store, input_key(file.sha256, file.name), folder, each_block)


def download(
    file: InputFile,
    store: ObjectStore,
    key: str,
    folder: Path,
    each_block: Callable[[], None] = lambda: None,
) -> None:
    """Download one staged file into `folder` and verify it.

    Raises:
        InputError: its bytes do not match its hash.
    """
    digest = hashlib.sha256()
    memory = memoryview(bytearray(min(_FETCH_BYTES, file.size)))
    with (folder / file.name).open("wb") as output:
        for start in range(0, file.size, _FETCH_BYTES):
            block = memory[: file.size - start]
            each_block()
            store.read_into(key, start, [block])
            digest.update(block)
            output.write(block)
    if digest.hexdigest() != file.sha256:
        raise InputError(
            f"The staged file {key} is damaged: its sha256 differs.",
            f"Delete {key} from {store.url} and give the command again where the files are.",
        )


def _cache_key(spec: RunSpec) -> str:
    digest = hashlib.sha256(f"{__version__} {_LAYOUT}".encode())
    digest.update(f"{spec.model.max_length} {spec.train.seed}".encode())
    digest.update(spec.data.model_dump_json(exclude={"train", "num_tokens"}).encode())
    digest.update(describe_file(Path(spec.data.train)).sha256.encode())
    for path in sorted(Path(spec.model.base).iterdir()):
        if path.is_file():
            digest.update(f"{path.name} {describe_file(path).sha256}".encode())
    return digest.hexdigest()[:24]


def _prepare_into(folder: Path, spec: RunSpec) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        output = Path(scratch) / "out"
        summary = _run_preparation(spec, output, cwd=scratch)
        (output / SUMMARY_NAME).write_text(summary.model_dump_json())
        shutil.rmtree(folder, ignore_errors=True)
        # Renamed when complete, so that a killed launch leaves no half of a cache entry.
        output.rename(folder)


def _run_preparation(spec: RunSpec, output: Path, cwd: str) -> PreparationSummary:
    command = [
        *(sys.executable, "-m", "train.data.prepare"),
        *("--model", spec.model.base, "--train", spec.data.train, "--output", str(output)),
        *("--max-length", str(spec.model.max_length)),
        *("--eval-fraction", str(spec.data.eval_fraction), "--seed", str(spec.train.seed)),
        *("--template", spec.data.template.value, "--untrainable", spec.data.untrainable.value),
        "--packing" if spec.data.packing else "--no-packing",
    ]
    last_line = "it said nothing"
    with (
        tempfile.TemporaryFile("w+", dir=cwd) as printed,
        subprocess.Popen(
            command, cwd=cwd, stdout=printed, stderr=subprocess.PIPE, text=True
        ) as program,
    ):
        assert program.stderr is not None
        for line in program.stderr:
            last_line = line.strip() or last_line
            if line.startswith(_PROGRESS):
                sys.stderr.write(line)
        if program.wait() == 0:
            printed.seek(0)
            return PreparationSummary.model_validate_json(printed.read())
    raise problem_of(last_line, "Preparing the data")


def describe_file(path: Path) -> InputFile:
    """Return a file's name, hash and size."""
    digest = hashlib.sha256()
    size = 0
    for block in _blocks(path):
        digest.update(block)
        size += len(block)
    return InputFile(name=path.name, sha256=digest.hexdigest(), size=size)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
