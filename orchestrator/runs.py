"""Which runs this machine knows, so that a name is enough; a cache that may be lost at any time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.layout import RUN_KEY
from checkpoints.store import ObjectStore, open_store
from orchestrator.errors import UnknownRun
from orchestrator.home import KNOWN_NAME, home, make_folder, run_key
from orchestrator.ledger.fetching import fetch
from orchestrator.spec import LOCAL_S3, RUN_NAME, resolve_store, suggest


class _Known(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    run: str
    store: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRun:
    """A run's name and the store that holds it."""

    run: str
    store_url: str

    @property
    def key(self) -> str:
        """What tells it from runs of its name in other stores."""
        return run_key(self.store_url, self.run)

    def open(self) -> ObjectStore:
        """Return the run folder."""
        return open_run_folder(self.store_url, self.run)


def open_run_folder(store_url: str, run: str) -> ObjectStore:
    """Return the folder of a run."""
    return open_store_at(run_folder_url(store_url, run))


def run_folder_url(store_url: str, run: str) -> str:
    """Return where a run lies in a store."""
    return f"{store_url}/{run}"


def remember_run(run_home: Path, run: str, store_url: str) -> None:
    """Note where a run is.

    Raises:
        UsageError: this machine's state folder cannot be written.
    """
    known = _Known(run=run, store=store_url).model_dump_json()
    make_folder(run_home)
    (run_home / KNOWN_NAME).write_text(known)


def forget_run(run_home: Path) -> None:
    """Drop the note."""
    (run_home / KNOWN_NAME).unlink(missing_ok=True)


def list_runs(store: str | None) -> list[KnownRun]:
    """Return the runs in `store`, or those that this machine has launched or looked at."""
    if store is not None:
        url = resolve_store(store)
        folder = open_store_at(url)
        names = (name for name in folder.list_folders() if re.fullmatch(RUN_NAME, name))
        keys = [f"{name}/{RUN_KEY}" for name in names]
        runs_there = [key for key, data in fetch(folder, keys) if data is not None]
        return [KnownRun(run=key.partition("/")[0], store_url=url) for key in runs_there]
    runs = []
    for path in sorted(home().glob(f"runs/*/{KNOWN_NAME}")):
        try:
            known = _Known.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
        runs.append(KnownRun(run=known.run, store_url=known.store))
    return runs


def find_run(run: str, store: str | None) -> KnownRun:
    """Return where the run is.

    Raises:
        UnknownRun: no such run, or the name stands for several.
    """
    if re.fullmatch(RUN_NAME, run) is None:
        # A name is also a folder: one with slashes or dots would reach out of the store.
        raise UnknownRun(f"{run!r} is not a run's name.", "Names: a-z, 0-9 and dashes.")
    if store is not None:
        return KnownRun(run=run, store_url=resolve_store(store))
    known = list_runs(None)
    found = [one for one in known if one.run == run]
    if len(found) > 1:
        urls = ", ".join(one.store_url for one in found)
        raise UnknownRun(f"{run!r} names runs in several stores: {urls}.", "Add --store URL.")
    if not found:
        close = suggest(run, [one.run for one in known])
        raise UnknownRun(
            f"This machine knows no run {run!r}{close}",
            "Add --store URL, or see orchestrate status.",
        )
    return found[0]


def open_store_at(url: str) -> ObjectStore:
    """Open a store whose server may have to be started first, as after a reboot."""
    if url.startswith(LOCAL_S3):
        from orchestrator.cloud.local.s3_server import ensure_server  # psutil: 7 ms

        ensure_server()
    return open_store(url)
