"""Report a run to Weights & Biases: one W&B run for all attempts, never in training's way.

W&B is a view of what the run folder holds. Each attempt first sends the recorded steps that W&B
does not have yet, so the curve has no gap and no step twice; replayed steps are not sent again.
"""

from __future__ import annotations

import logging
import netrc
import os
import queue
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from checkpoints.store import ObjectStore
from orchestrator.ledger.fold import RunState
from orchestrator.ledger.measurements import MeasurementReader, latest_by_step
from train.spool import Evaluated, Record, Step

_Mode: TypeAlias = Literal["online", "offline", "disabled"]

_log = logging.getLogger(__name__)
_INIT_TIMEOUT_S = 90
# The node is billed meanwhile; what W&B lacks then, the next attempt or `wandb sync` sends.
_FINISH_TIMEOUT_S = 15.0
# Nothing is waited for but this machine: its W&B process writes out the file at its end only,
# and on a fresh, loaded node a short attempt is over before W&B is imported.
_FINISH_OFFLINE_TIMEOUT_S = 60.0
_CONNECT_TIMEOUT_S = 5.0
# Records that may wait for W&B; those beyond are not sent, the run folder has them.
_QUEUE_SIZE = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What W&B is told about the run."""

    run_id: str
    name: str
    project: str
    entity: str | None
    config: Mapping[str, Any]
    directory: Path


def start_tracker(
    store: ObjectStore, state: RunState, step: int, scratch: Path
) -> WandbTracker | None:
    """Report the attempt that goes on after `step`, if the spec asks for it."""
    wandb = state.spec.tracking.wandb
    if wandb is None:
        return None
    recorded = latest_by_step(MeasurementReader(store).read())
    tracked = TrackedRun(
        run_id=state.record.run_id,
        name=state.record.run,
        project=wandb.project,
        entity=wandb.entity,
        config=state.spec.model_dump(mode="json"),
        directory=scratch / "wandb",
    )
    return WandbTracker(tracked, [recorded[one] for one in sorted(recorded) if one <= step])


class WandbTracker:
    """Owns the attempt's only W&B process, in a thread, so that W&B can never block training."""

    def __init__(self, tracked: TrackedRun, history: Sequence[Step]) -> None:
        self._tracked = tracked
        self._history = history
        self._queue: queue.Queue[Record | None] = queue.Queue(_QUEUE_SIZE)
        self._sends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        self._thread.start()

    def log(self, records: Sequence[Record]) -> None:
        """Hand over records; drops them when W&B is hopelessly behind."""
        for record in records:
            if isinstance(record, (Step, Evaluated)):
                self._offer(record)

    def finish(self) -> Path | None:
        """Close the run; return the file of an offline run, None where W&B has everything."""
        self._offer(None)
        self._thread.join(_FINISH_TIMEOUT_S)
        if not self._sends.is_set():
            self._thread.join(_FINISH_OFFLINE_TIMEOUT_S - _FINISH_TIMEOUT_S)
        if self._thread.is_alive():
            _log.warning("W&B did not finish in time; the next attempt sends what it lacks")
        files = sorted(self._tracked.directory.glob("wandb/offline-run-*/run-*.wandb"))
        return files[-1] if files else None

    def _offer(self, item: Record | None) -> None:
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            _log.warning("W&B is too far behind; dropped one record, steps/ has it")

    def _run(self) -> None:
        try:
            self._report()
        except Exception:  # noqa: BLE001  # W&B must never end a run, whatever it raises
            _log.exception("W&B failed; the run goes on without it")

    def _report(self) -> None:
        mode = _choose_mode()
        if mode == "online":
            self._sends.set()
        run = _open_run(self._tracked, mode)
        run.define_metric("*", step_metric="train/step")
        # What the server has already; an offline run has nothing and gets the whole history.
        high_water = run.starting_step
        for step in self._history:
            high_water = _log_step(run, step, high_water)
        while (item := self._queue.get()) is not None:
            if isinstance(item, Step):
                high_water = _log_step(run, item, high_water)
            elif isinstance(item, Evaluated):
                run.summary["eval/loss"] = item.loss
        run.finish()


def _choose_mode() -> _Mode:
    wished = os.environ.get("WANDB_MODE", "online")
    if wished == "disabled":
        return "disabled"
    # wandb.init waits much longer than its init_timeout for a server that is not there.
    return "online" if wished == "online" and has_key() and _is_reachable() else "offline"


def _open_run(tracked: TrackedRun, mode: _Mode) -> Any:  # noqa: ANN401  # wandb.Run, imported late
    # 1 s of CPU that an attempt without tracking need not pay.
    import wandb

    tracked.directory.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=tracked.project,
        entity=tracked.entity,
        id=tracked.run_id,
        name=tracked.name,
        config=dict(tracked.config),
        dir=str(tracked.directory),
        resume="allow" if mode == "online" else None,
        mode=mode,
        settings=wandb.Settings(init_timeout=_INIT_TIMEOUT_S, console="off", silent=True),
    )


def _is_reachable() -> bool:
    url = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        _log.warning("W&B cannot be reached, recording offline: %s", error)
        return False
    return True


def has_key() -> bool:
    """Say whether W&B's key is where its client looks for it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _log_step(run: Any, step: Step, high_water: int) -> int:  # noqa: ANN401  # wandb.Run
    """Log a step unless W&B has it; return the next step that W&B lacks."""
    if step.step < high_water:
        return high_water
    run.log(
        {
            "train/step": step.step,
            "train/loss": step.loss,
            "train/grad_norm": step.grad_norm,
            "train/learning_rate": step.learning_rate,
            "train/tokens_per_s": step.num_tokens / step.seconds if step.seconds else 0.0,
        },
        step=step.step,
    )
    return step.step + 1
