"""A launch without our plugin: the node keeps the part of the ledger that its controller would.

Node 0 writes that the launch began, that those before it are gone, and how it ended, so that the
bill is complete. What only the plugin can do (choose the place, keep a deadline) is not done.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from checkpoints.errors import CheckpointError
from checkpoints.store import ObjectStore
from orchestrator.agent.agent import Agent
from orchestrator.agent.config import AgentConfig
from orchestrator.agent.guards import stop_by_policy
from orchestrator.attempts import AgentExit, EndReason, StopReason, exit_status
from orchestrator.clock import Clock
from orchestrator.cloud.skypilot.this_node import started_for_this
from orchestrator.ledger.facts import (
    LaunchEnded,
    LaunchReady,
    LaunchStarted,
    RunEnded,
    terminated_by,
)
from orchestrator.ledger.fold import LaunchView, RunState, fold
from orchestrator.ledger.heartbeat import last_beat_at
from orchestrator.ledger.journal import Journal, LedgerReader
from orchestrator.ledger.record import RunRecord
from orchestrator.notify.notifier import start_notifier
from orchestrator.policy.answers import Stop
from orchestrator.policy.situation import situation

_log = logging.getLogger(__name__)
# An agent beats every 20 s, and a node that is gone is billed no longer: this much after its last
# beat at the most, on average half of it.
_UNSEEN = timedelta(minutes=1)


def new_launch(record: RunRecord) -> str:
    """Return a name for this launch that no other has; node 0 tells it to the others.

    SkyPilot has none to give: a task's id is the same for all its launches, and a job's number and
    the nodes' addresses may come again.
    """
    return f"{record.run_id}-solo-{secrets.token_hex(3)}"


def exit_status_for_skypilot(reason: EndReason) -> int:
    """Return the exit status by which SkyPilot's own strategy does what should follow.

    It starts a job again after any status but 0; a run that is to stop must not be.
    """
    if reason in (EndReason.STOPPED, EndReason.FENCED):
        return AgentExit.DONE
    return exit_status(reason)


def is_over(state: RunState, clock: Clock) -> bool:
    """Say whether nothing is left to do here, as when SkyPilot starts a job that was stopped."""
    leave = None if state.ended is not None else stop_by_policy(state, clock)
    why = state.ended.why if state.ended is not None else leave and leave.why
    if why:
        _log.warning("not started: %s", why)
    return bool(why)


def run_alone(
    config: AgentConfig,
    store: ObjectStore,
    record: RunRecord,
    clock: Clock,
    notify: str | None = None,
) -> int:
    """Run this node's part, on node 0 keep the ledger around it; return the exit status.

    Node 0 also sends the run's notifications, to the addresses in `notify`.
    """
    ledger = LedgerReader(store)
    state = fold(record, ledger.read())
    if is_over(state, clock):  # each node sees for itself: they would wait for the others
        return AgentExit.DONE
    if config.node != 0:
        return exit_status_for_skypilot(Agent(config, store, state, clock).run())
    note_start(config, store, state, clock)
    state = fold(record, ledger.read())
    journal = Journal(store, "solo", clock)

    def note_end(reason: EndReason) -> None:
        journal.record(_ended(config.launch, reason))
        _flush(journal)
        if reason in (EndReason.SUCCEEDED, EndReason.STOPPED):
            _note_run_end(fold(record, ledger.read()), reason, journal, clock)

    notifier = start_notifier(store, record, notify, clock, _log)
    try:
        reason = Agent(config, store, state, clock).run(note_end)
    except Exception:
        note_end(EndReason.NODE_LOST)
        raise
    finally:
        if notifier is not None:
            notifier.close()
    return exit_status_for_skypilot(reason)


def note_start(config: AgentConfig, store: ObjectStore, state: RunState, clock: Clock) -> None:
    """Write, as of when the node came up, that the launch began; and that others are gone."""
    came_up = _came_up(state, clock.now())
    started = LaunchStarted(
        launch=config.launch,
        offer=config.offer,
        num_nodes=state.record.spec.nodes.count,
        launched_at=state.launched_at,
    )
    now = Journal(store, "solo", clock)
    for launch in state.open_launches:
        now.record(_lost(launch, state, store, came_up))
    now.flush()
    then = Journal(store, "solo", _AsOf(came_up))
    then.record(started)
    then.record(LaunchReady(launch=config.launch))
    then.flush()


@dataclass(frozen=True, slots=True)
class _AsOf:
    """A clock that stands still: for facts that are written after they happened."""

    at: datetime

    def now(self) -> datetime:
        return self.at

    def sleep(self, duration: timedelta) -> None:
        raise NotImplementedError


def _came_up(state: RunState, now: datetime) -> datetime:
    """Return when this machine started, which is when its bill began."""
    ends = [launch.ended_at for launch in state.launches if launch.ended_at is not None]
    return min(now, max([started_for_this(now), *ends]))


def _lost(launch: LaunchView, state: RunState, store: ObjectStore, until: datetime) -> LaunchEnded:
    """Say that an earlier launch is gone: as its agent said, or as of its last sign of life.

    SkyPilot terminates what it replaces, so it was gone when the next one came up.
    """
    said = [end.reason for end in state.attempt_ends if end.attempt == launch.attempt]
    began_at = launch.attempt_started_at or launch.started_at
    heard_at = last_beat_at(store, launch.attempt) or began_at
    reason = said[0] if said else EndReason.NODE_LOST
    return _ended(launch.launch, reason, gone_at=min(until, heard_at + _UNSEEN))


def _ended(launch: str, reason: EndReason, gone_at: datetime | None = None) -> LaunchEnded:
    by = terminated_by(reason)
    return LaunchEnded(launch=launch, reason=reason, terminated_by=by, gone_at=gone_at)


def _note_run_end(state: RunState, reason: EndReason, journal: Journal, clock: Clock) -> None:
    """Write the end of the run: nothing follows a last step, a stop or a budget that is used up."""
    decision = situation(state, None, clock.now()).reason_to_stop()
    if decision is None:
        is_done = reason is EndReason.SUCCEEDED
        decision = Stop(
            reason=StopReason.DONE if is_done else StopReason.REQUESTED,
            why="the last step is committed" if is_done else "a stop was requested",
        )
    journal.record(RunEnded.after(decision.reason, decision.why, state.launched_at))
    _flush(journal)


def _flush(journal: Journal) -> None:
    try:
        journal.flush()
    except CheckpointError as error:
        _log.warning("the end could not be recorded: %s", error)
