"""Tell a run of an evaluation of its model: a fact in its ledger, and a run of its own in W&B."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checkpoints.store import ObjectStore
from orchestrator.clock import Clock
from orchestrator.evaluation.keeping import as_fact
from orchestrator.evaluation.report import Report
from orchestrator.evaluation.wandb_process import WandbConfig
from orchestrator.ledger.fold import RunState, fold
from orchestrator.ledger.journal import Journal, LedgerReader
from orchestrator.ledger.readers import is_read_by_older
from orchestrator.ledger.record import read_record

# W&B may wait for ever; the report is kept already.
_WANDB_TIMEOUT_S = 120.0


def tell_run(folder: ObjectStore, report: Report, clock: Clock) -> list[str]:
    """Write the fact, draw in W&B where the run does; return what people should know of it."""
    record = read_record(folder)
    assert record is not None, "a checkpoint of this run was evaluated"
    assert report.model.step is not None, "a run's model is a checkpoint"
    state = fold(record, LedgerReader(folder).read())
    said = []
    if is_read_by_older(folder, state):
        said.append("An earlier version carries the run out: its page will not show this.")
    else:
        journal = Journal(folder, "cli", clock)
        journal.record(as_fact(report, report.model.step))
        journal.flush()
    return said + _draw(state, report)


def _draw(state: RunState, report: Report) -> list[str]:
    spec = state.spec.tracking.wandb
    if spec is None:
        return []
    with tempfile.TemporaryDirectory(prefix="orchestrate-wandb-") as scratch:
        config = WandbConfig(
            project=spec.project,
            entity=spec.entity,
            run=state.record.run,
            run_id=state.record.run_id,
            directory=Path(scratch),
            report=report,
        )
        file = Path(scratch) / "evaluation.json"
        file.write_text(config.model_dump_json())
        command = [sys.executable, "-m", "orchestrator.evaluation.wandb_process", str(file)]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "TMPDIR": scratch},  # it leaves folders there
                capture_output=True,
                text=True,
                timeout=_WANDB_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [f"W&B took longer than {_WANDB_TIMEOUT_S:.0f} s and does not have it."]
    lines = done.stdout.splitlines() if done.returncode == 0 else done.stderr.splitlines()
    return [lines[-1] if lines else "W&B does not have it."]
