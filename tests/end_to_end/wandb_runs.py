"""`python wandb_runs.py RUN_FOLDER`: what each attempt recorded for W&B offline, as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore

from checkpoints.layout import LOGS
from checkpoints.store import open_store


@dataclass(frozen=True)
class Recorded:
    """What one offline file holds; W&B's own underscored values are left out."""

    run_id: str
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    alerts: list[str]
    """Titles."""


def scan(path: Path) -> Recorded:
    """Read a file to its end, or to where its writer was killed."""
    store, run_id = DataStore(), ""
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    alerts: list[str] = []
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        run_id = record.run.run_id or run_id
        if record.history.item:
            rows.append(_values(record.history.item))
        summary |= _values(record.summary.update)
        if record.alert.title:
            alerts.append(record.alert.title)
    store.close()
    return Recorded(run_id, rows, summary, alerts)


def _values(items: Any) -> dict[str, Any]:
    named = ((item.key or "/".join(item.nested_key), item.value_json) for item in items)
    return {name: json.loads(value) for name, value in named if not name.startswith("_")}


def read(path: Path) -> tuple[str, list[int]]:
    """Return the run's id and its steps, in order."""
    recorded = scan(path)
    return recorded.run_id, [row["train/step"] for row in recorded.rows if "train/step" in row]


def main(url: str) -> None:
    """Print [[id, steps], ...] in the order of attempts."""
    store = open_store(url)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for entry in store.list(LOGS):
            if entry.key.endswith(".wandb"):
                path = Path(scratch) / "run.wandb"
                path.write_bytes(store.get(entry.key).data)
                found.append(read(path))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
