"""What lists of runs show of each; of runs that are over it is kept on this machine.

What is kept may be thrown away at any time. It holds for one content of run.json, one
list of the ledger's objects (they never change) and one state of the code that computes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from checkpoints.errors import CheckpointError, ObjectMissing
from checkpoints.layout import EVENTS, RUN_KEY
from checkpoints.store import ObjectStore, is_bucket
from orchestrator import __version__
from orchestrator.errors import OrchestratorError
from orchestrator.home import run_home
from orchestrator.report import cost_document, describe_progress, status_document
from orchestrator.runs import KnownRun
from orchestrator.view import RunView, RunViewer

_NAME = "glance.json"
# After its end, a node that was cut off may still upload what it measured.
_SETTLED = timedelta(hours=1)
# Looks at once: each is three requests at least, of some 20 ms from a bucket. What is on this
# machine is work for two cores: 100 runs take 0.33 s with two threads, 0.43 s with 24.
_NUM_THREADS, _NUM_THREADS_HERE = 24, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """One run in a list: a line for people, and the documents for programs."""

    run: str
    line: str
    as_of: datetime
    view: RunView | None = None
    """None where documents were kept."""
    kept: Mapping[str, Any] = field(default_factory=dict)

    def status(self) -> dict[str, Any]:
        """Return the document of `status RUN --json`."""
        return self._again("status") if self.view is None else status_document(self.view)

    def cost(self) -> dict[str, Any]:
        """Return the document of `cost RUN --json`."""
        return self._again("cost") if self.view is None else cost_document(self.view)

    def _again(self, name: str) -> dict[str, Any]:
        return {**self.kept[name], "as_of": self.as_of.isoformat()}


@dataclass(frozen=True, slots=True)
class Unread:
    """One run that cannot be read, and why."""

    run: str
    why: str


def glance_at(runs: Sequence[KnownRun], now: datetime) -> list[Glance | Unread]:
    """Return what a list shows of each run; one that cannot be read hides no other."""

    def one(known: KnownRun) -> Glance | Unread:
        try:
            return _glance(known, now)
        except (OrchestratorError, CheckpointError) as error:
            return Unread(known.run, error.what)

    is_remote = any(is_bucket(known.store_url) for known in runs)
    with ThreadPoolExecutor(_NUM_THREADS if is_remote else _NUM_THREADS_HERE) as pool:
        return list(pool.map(one, runs))


def _glance(known: KnownRun, now: datetime) -> Glance:
    store, path = known.open(), run_home(known.store_url, known.run) / _NAME
    content = _fingerprint(store)
    kept = _read(path, content)
    if kept is not None:
        return Glance(run=known.run, line=kept["line"], as_of=now, kept=kept)
    view = RunViewer(store).look(now)
    line = describe_progress(view)
    found = Glance(run=view.record.run, line=line, as_of=now, view=view)
    ended_at = view.state.ended_at
    is_settled = ended_at is not None and now - ended_at > _SETTLED
    if view.state.ended is not None and is_settled and not view.serving.is_going_on:
        _write(
            path, {"content": content, "line": line, "status": found.status(), "cost": found.cost()}
        )
    return found


def _fingerprint(store: ObjectStore) -> str:
    """Return what all that is shown of a run follows from; only what is there changes it."""
    try:
        record = store.get(RUN_KEY).data
    except ObjectMissing:
        record = b""
    found = hashlib.sha256(_code() + record)
    for key in sorted(entry.key for entry in store.list(EVENTS)):
        found.update(f"\n{key}".encode())
    return found.hexdigest()


@cache
def _code() -> bytes:
    """Return what changes with any file that a report may come from, also without a new version."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *here.glob("ledger/*.py")])
    told = [(file.name, (status := file.stat()).st_mtime_ns, status.st_size) for file in files]
    return repr((__version__, told)).encode()


def _read(path: Path, content: str) -> dict[str, Any] | None:
    try:
        kept = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    is_whole = isinstance(kept, dict) and kept.keys() == {"content", "line", "status", "cost"}
    return kept if is_whole and kept["content"] == content else None


def _write(path: Path, kept: dict[str, Any]) -> None:
    scratch = path.with_name(f"{path.name}.{id(kept):x}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(kept))
        scratch.replace(path)
    except OSError:
        return  # a full disk, or a home that is read-only: it is computed again next time
