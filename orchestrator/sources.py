"""Bring a run's data and model to this machine, from wherever the spec says that they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from checkpoints.addresses import check_proxies, split_address
from checkpoints.errors import ObjectMissing
from checkpoints.regular_files import open_regular
from checkpoints.store import CLOUD_SCHEMES, open_store
from orchestrator.errors import InputError, MissingDependency
from orchestrator.home import home, make_folder
from orchestrator.redact import redact
from orchestrator.spec import RunSpec

_BLOCK_BYTES = 64 << 20
_TIMEOUT_S = 60
# In letters, of up to four bytes: file systems take 255 of them, and `_replacing` adds some.
_LONGEST_NAME = 60
# What a model folder in the Hugging Face layout has that training reads.
_MODEL_FILES = ["*.json", "*.safetensors", "tokenizer.model"]


def with_local_sources(spec: RunSpec) -> RunSpec:
    """Return the spec with a file for data.train and a folder for model.base.

    Raises:
        InputError: one of them is not there, or cannot be fetched.
        StoreError: the bucket of the data refuses or cannot be reached.
        MissingDependency: the model is on the Hugging Face hub, whose client is not installed.
    """
    data = spec.data.model_copy(update={"train": str(_data_file(spec.data.train))})
    model = spec.model.model_copy(update={"base": str(_model_folder(spec.model.base))})
    return spec.model_copy(update={"data": data, "model": model})


def _data_file(source: str) -> Path:
    scheme, separator, _ = source.partition("://")
    if not separator:
        return _existing_file(Path(source))
    target = _cached(source)
    if scheme in CLOUD_SCHEMES:
        place, _, key = source.rpartition("/")
        _download_object(place, key, target)
    elif scheme in ("http", "https"):
        _download_url(source, target)
    else:
        raise InputError(
            f"data.train {source}: unknown scheme {scheme}://.",
            f"Write a path, {', '.join(f'{known}://' for known in CLOUD_SCHEMES)} or https://.",
        )
    return target


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"data.train {path} {what}.", "Check the path in the spec.")
    try:
        open_regular(path).close()
    except OSError as error:
        raise InputError(
            f"data.train {path} cannot be read: {error.strerror}.", "Check the path in the spec."
        ) from error
    return path


def _cached(source: str) -> Path:
    folder = home() / "sources" / hashlib.sha256(source.encode()).hexdigest()[:16]
    make_folder(folder)
    # Programs are told of it in their arguments, which all users of the machine can read.
    name = source.partition("?")[0].rpartition("/")[2] or "data"
    return folder / name[-_LONGEST_NAME:]


def _download_object(place: str, key: str, target: Path) -> None:
    store = open_store(place)
    size = next((entry.size for entry in store.list(key) if entry.key == key), None)
    if size is None:
        raise InputError(f"data.train {place}/{key} does not exist.", "Check it in the spec.")
    with _replacing(target) as scratch, scratch.open("wb") as output:
        for start in range(0, size, _BLOCK_BYTES):
            block = memoryview(bytearray(min(_BLOCK_BYTES, size - start)))
            try:
                store.read_into(key, start, [block])
            except ObjectMissing as error:
                raise InputError(
                    f"data.train {place}/{key} was deleted meanwhile.", "Launch again."
                ) from error
            output.write(block)


def _download_url(url: str, target: Path) -> None:
    # 50 ms, for data on the web only.
    import httpx

    split_address(url, "data.train")
    check_proxies()
    try:
        with (
            _replacing(target) as scratch,
            scratch.open("wb") as output,
            httpx.stream("GET", url, follow_redirects=True, timeout=_TIMEOUT_S) as response,
        ):
            response.raise_for_status()
            for block in response.iter_bytes():
                output.write(block)
    # A server may send us on to what is no address; certificates and the disk may be unusable.
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, OSError) as error:
        what = redact(f"data.train {url} cannot be fetched: {error}")
        raise InputError(what, "Check the URL and the network.") from error


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Give a file to write, which takes the place of `target` once it is complete."""
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield scratch
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def _model_folder(base: str) -> Path:
    path = Path(base)
    if path.is_dir():
        return path
    if path.exists() or path.is_absolute() or base.count("/") != 1 or base.startswith("."):
        raise InputError(
            f"model.base {base} is not a folder.",
            "Give a folder that holds config.json, or the id of a model on the hub: owner/name.",
        )
    return _download_model(base)


def _download_model(name: str) -> Path:
    """Fetch a model into the hub client's own cache, which resumes and checks what it fetches."""
    try:
        hub = import_module("huggingface_hub")
    except ImportError as error:
        raise MissingDependency(
            f"model.base {name} is on the Hugging Face hub, whose client is not installed.",
            "Install it: pip install 'spot-orchestrator[train]'; or give a folder.",
        ) from error
    try:
        return Path(hub.snapshot_download(name, allow_patterns=_MODEL_FILES))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"model.base {name} is no folder here, and the hub does not give it: {line}",
            "Check the id and HF_TOKEN; a model folder works without the hub.",
        ) from error
