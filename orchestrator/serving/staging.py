"""Bring a model into a bucket, once, where every replica of a service fetches it from."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.errors import ObjectMissing
from checkpoints.layout import exported_key
from checkpoints.store import ObjectStore, is_bucket, open_store
from orchestrator.errors import InputError, UsageError, unreadable
from orchestrator.inputs import InputFile, describe_file, download, upload
from orchestrator.serving.service import StagedModel

_INDEX = "files.json"
_SCHEMA_VERSION = 1


class _Index(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = _SCHEMA_VERSION
    files: tuple[InputFile, ...]


def require_bucket(url: str, what: str) -> None:
    """Raise UsageError unless nodes on clouds can read the store `url`."""
    if not is_bucket(url) or url.startswith("s3-local:"):
        raise UsageError(
            f"{what} is in {url}, which nodes on clouds cannot read.",
            "Give a folder and a bucket: orchestrate serve FOLDER --store s3://bucket/prefix "
            "(a run's folder: orchestrate checkpoints export RUN --output FOLDER).",
        )


def staged_files(store: ObjectStore, checkpoint: str) -> tuple[InputFile, ...] | None:
    """Return the files of an export that is in the bucket already, None if it is not."""
    key = exported_key(checkpoint, _INDEX)
    try:
        data = store.get(key).data
    except ObjectMissing:
        return None
    try:
        return _Index.model_validate_json(data).files
    except ValidationError as error:
        raise unreadable(f"The export {key}", data, error, _SCHEMA_VERSION) from error


def stage_export(store: ObjectStore, checkpoint: str, folder: Path) -> tuple[InputFile, ...]:
    """Upload a Hugging Face folder; with its index, which comes last, it is there as a whole."""
    files = describe_folder(folder)
    for file in files:
        upload(folder / file.name, store, exported_key(checkpoint, file.name))
    index = _Index(files=files).model_dump_json().encode()
    store.put(exported_key(checkpoint, _INDEX), index)
    return files


def describe_folder(folder: Path) -> tuple[InputFile, ...]:
    """Return the files of a Hugging Face folder with their hashes; hidden ones and others' are not.

    Raises:
        InputError: it holds no weights that can be served.
    """
    paths = sorted(path for path in folder.iterdir() if path.is_file() and _is_of_model(path))
    if not any(path.suffix == ".safetensors" for path in paths):
        raise InputError(
            f"{folder} has no weights in safetensors.", "Export or convert the model first."
        )
    return tuple(describe_file(path) for path in paths)


def _is_of_model(path: Path) -> bool:
    # Weights as pickles are not brought along: loading one runs what is in it.
    return path.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt")


def own_folder(store_url: str, name: str, files: Iterable[InputFile]) -> str:
    """Return the URL of the folder of a model that is no run: the same files, the same folder."""
    told = "".join(f"{file.name} {file.sha256}\n" for file in files)
    return f"{store_url}/{name}-model-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def fetch_model(model: StagedModel, folder: Path) -> Path:
    """Download a model into a folder named after it below `folder`, verify it, and return it.

    Raises:
        InputError: bytes differ from those that were staged.
    """
    store, target = open_store(model.folder), folder / model.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in model.files:
        download(file, store, exported_key(model.checkpoint, file.name), target)
    return target
