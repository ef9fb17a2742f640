"""Report a run to Weights & Biases: one W&B run for all attempts, never in training's way.

W&B is a view of what the run folder holds. Each attempt first sends the recorded steps that W&B
does not have yet, so the curve has no gap and no step twice; replayed steps are not sent again.
"""

from __future__ import annotations

import functools
import logging
import netrc
import os
import queue
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from checkpoints.store import ObjectStore
from orchestrator.ledger.fold import RunState
from orchestrator.ledger.measurements import MeasurementReader, latest_by_step
from train.spool import Evaluated, Record, Step

_log = logging.getLogger(__name__)
_INIT_TIMEOUT_S = 30
# The node is billed meanwhile; what W&B lacks then, the next attempt or `wandb sync` sends.
_FINISH_TIMEOUT_S = 15.0
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
        run = _open_run(self._tracked)
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


def _open_run(tracked: TrackedRun) -> Any:  # noqa: ANN401  # wandb.Run, whose module is imported late
    # 1 s of CPU that an attempt without tracking need not pay.
    import wandb

    tracked.directory.mkdir(parents=True, exist_ok=True)
    open_run = functools.partial(
        wandb.init,
        project=tracked.project,
        entity=tracked.entity,
        id=tracked.run_id,
        name=tracked.name,
        config=dict(tracked.config),
        dir=str(tracked.directory),
        settings=wandb.Settings(init_timeout=_INIT_TIMEOUT_S, console="off", silent=True),
    )
    if "WANDB_MODE" in os.environ:
        return open_run(resume="allow")
    # wandb.init waits much longer than its init_timeout for a server that is not there.
    if has_key() and _is_reachable():
        return open_run(resume="allow", mode="online")
    return open_run(mode="offline")


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
