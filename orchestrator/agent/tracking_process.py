"""The side process that speaks to W&B: `python -m orchestrator.agent.tracking_process CONFIG`.

It reads what earlier attempts left in the run folder, then the spool of this one until its standard
input ends. Nobody waits for it but `Tracker.finish`, and that not for long.
"""

from __future__ import annotations

import logging
import os
import re
import select
import socket
import sys
import threading
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from checkpoints.errors import CheckpointError
from checkpoints.store import ObjectStore, open_store
from orchestrator.agent.curve import (
    EVAL_STEP,
    HOURS_SPARE,
    LOOK_EVERY,
    USD_TOTAL,
    Alert,
    Curve,
    Row,
)
from orchestrator.agent.tracking import Mode, TrackingConfig, has_key, online_mark
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.facts import Entry
from orchestrator.ledger.fold import fold
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.measurements import Measured, MeasurementReader
from orchestrator.ledger.record import RunRecord, read_record
from train.spool import read_records, spool_path

_log = logging.getLogger(__name__)
_POLL_S = 1.0
_CONNECT_TIMEOUT_S = 5.0
_INIT_TIMEOUT_S = 90
# When the agent is gone, nobody kills us: longer than it would have waited.
_ORPHAN_TIMEOUT_S = 90.0
# Training comes first where they share a core.
_NICE = 5
# The past of a long run is looked at less often: a look at 20,000 steps takes 0.2 s of CPU.
_MAX_LOOKS_BACK = 100
_GAVE_UP = re.compile(r'"level":"ERROR[^"]*","msg":"filestream: ')


def report(config: TrackingConfig) -> bool:
    """Draw the run until standard input ends; say whether W&B, or its file, has all of it.

    Raises:
        CheckpointError: the run folder cannot be read.
        OrchestratorError: it holds what this version cannot read.
    """
    store = open_store(config.store)
    record = read_record(store)
    assert record is not None, "an attempt was claimed of a run that is not there"
    ledger = _Ledger(store)
    wandb_spec = fold(record, ledger.read()).spec.tracking.wandb
    assert wandb_spec is not None, "a tracker was started for a run without tracking"
    mode = config.mode or choose_mode()
    if mode is Mode.ONLINE:
        online_mark(config.directory).touch()
    run = open_run(
        config.directory,
        mode,
        project=wandb_spec.project,
        entity=wandb_spec.entity,
        id=record.run_id,
        name=record.run,
        config=record.spec.model_dump(mode="json"),
    )
    drawing = _Drawing(run, record, ledger)
    # What this attempt has uploaded already comes from its spool.
    drawing.draw_past(
        [one for one in MeasurementReader(store).read() if one.attempt < config.attempt]
    )
    offset, is_over = 0, False
    while not is_over:
        is_over = _is_over(_POLL_S)
        records, offset = read_records(spool_path(config.spool_dir), offset)
        for one in records:
            drawing.draw(Measured(attempt=config.attempt, record=one))
    drawing.close(config.attempt)
    run.finish()
    return not _has_dropped_history(Path(run.settings.log_internal))


class _Ledger:
    """The ledger as far as it can be read now."""

    def __init__(self, store: ObjectStore) -> None:
        self._reader = LedgerReader(store)
        self._entries: Sequence[Entry] = ()

    def read(self) -> Sequence[Entry]:
        try:
            self._entries = self._reader.read()
        except (CheckpointError, OrchestratorError) as error:
            _log.warning("cannot look at the ledger, W&B shows older costs: %s", error)
        return self._entries


class _Drawing:
    """Sends the curve's rows to W&B, each once."""

    def __init__(self, run: Any, record: RunRecord, ledger: _Ledger) -> None:  # noqa: ANN401  # wandb.Run
        self._run, self._ledger = run, ledger
        self._last_step = -1
        run.define_metric("*", step_metric="train/step")
        run.define_metric("eval/loss", step_metric=EVAL_STEP)
        # What the server has already; an offline run has nothing and gets everything.
        self._curve = Curve(
            record=record,
            read_ledger=ledger.read,
            next_step=run.starting_step,
            usd_told=run.summary.get(USD_TOTAL) or 0.0,
            is_late_told=(run.summary.get(HOURS_SPARE) or 0.0) < 0,
        )

    def draw_past(self, history: Sequence[Measured]) -> None:
        """Draw earlier attempts, from one look at the ledger."""
        if not history:
            return
        entries = self._ledger.read()
        self._curve.read_ledger = lambda: entries
        span = history[-1].record.at - history[0].record.at
        self._curve.look_every = max(LOOK_EVERY, span / _MAX_LOOKS_BACK)
        for one in history:
            self.draw(one)
        self._curve.read_ledger = self._ledger.read
        self._curve.look_every = LOOK_EVERY

    def draw(self, one: Measured) -> None:
        """Draw one record, if it belongs to the curve."""
        row = self._curve.add(one)
        if row is not None:
            self._send(row)

    def close(self, attempt: int) -> None:
        """Draw what is known at the end of the attempt."""
        row = self._curve.close(attempt, datetime.now(timezone.utc))
        if row is not None:
            self._send(row)

    def _send(self, row: Row) -> None:
        """Log a row; for a step that W&B is past, only its summary can still be told."""
        is_new = row.step >= max(self._curve.next_step, self._last_step)
        if is_new:
            self._run.log(dict(row.values), step=row.step)
            self._last_step = row.step
        else:
            self._run.summary.update(dict(row.values))
        for alert in row.alerts:
            self._tell(alert)

    def _tell(self, alert: Alert) -> None:
        _log.warning("%s: %s", alert.title, alert.text)
        self._run.alert(title=alert.title, text=alert.text, level=alert.level.value)


def _is_over(timeout_s: float) -> bool:
    """Wait for standard input to end, at most so long."""
    readable, _, _ = select.select([sys.stdin], [], [], timeout_s)
    if not readable or os.read(sys.stdin.fileno(), 1):
        return False
    timer = threading.Timer(_ORPHAN_TIMEOUT_S, os._exit, args=(1,))
    timer.daemon = True
    timer.start()
    return True


def choose_mode() -> Mode:
    """Return how W&B can be spoken to from here."""
    wished = os.environ.get("WANDB_MODE", "online")
    if wished == "disabled":
        return Mode.DISABLED
    is_online = wished == "online" and has_key() and _is_reachable()
    return Mode.ONLINE if is_online else Mode.OFFLINE


def _is_reachable() -> bool:
    url = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        _log.warning("W&B cannot be reached, recording offline: %s", error)
        return False
    return True


def _has_dropped_history(internal_log: Path) -> bool:
    """Say whether W&B's own process gave up sending; finish() returns as if nothing had happened.

    So it is where a key is revoked during the run (401, 404), or a proxy answers for the service.
    """
    try:
        return _GAVE_UP.search(internal_log.read_text(errors="replace")) is not None
    except FileNotFoundError:
        return False


def open_run(directory: Path, mode: Mode, **about: Any) -> Any:  # noqa: ANN401  # wandb's own
    """Begin a W&B run, or go on with it; may wait for ever, so only in a process of its own."""
    # 1 s of CPU, and only once it is known that the run wants it.
    import wandb

    return wandb.init(
        **about,
        dir=str(directory),
        resume="allow" if mode is Mode.ONLINE else None,
        mode=mode.value,
        settings=wandb.Settings(init_timeout=_INIT_TIMEOUT_S, console="off", silent=True),
    )


def main() -> None:
    """Report, and exit at once: W&B's exit handlers may wait for ever on a dead host."""
    logging.basicConfig(level=logging.INFO, format="agent: %(message)s")
    os.nice(_NICE)
    status = 1
    try:
        if report(TrackingConfig.model_validate_json(Path(sys.argv[1]).read_bytes())):
            status = 0
    except Exception:  # noqa: BLE001  # W&B may raise anything; the agent only needs to know
        _log.exception("W&B failed; the run goes on without it")
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    main()
