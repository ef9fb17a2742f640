"""`python wandb_runs.py RUN_FOLDER`: what each attempt recorded for W&B offline, as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore

from checkpoints.layout import LOGS
from checkpoints.store import open_store


def read(path: Path) -> tuple[str, list[int]]:
    """Return the run's id and its steps, in order."""
    scan, run_id, steps = DataStore(), "", []
    scan.open_for_scan(str(path))
    while (data := scan.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        run_id = record.run.run_id or run_id
        for item in record.history.item:
            if "train/step" in (item.key, *item.nested_key):
                steps.append(int(json.loads(item.value_json)))
    return run_id, steps


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
