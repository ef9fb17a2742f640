"""Reasons to end an attempt that come from the run folder, looked for at their own intervals.

A later attempt that owns the run; the budget, or a stop; requests to stop or drain; an owner that
is gone. Node 0 looks for all nodes: when it leaves, the others do. What takes the nodes down after
the agent has left is their owner's business; where the owner is gone, SkyPilot's autodown does it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from checkpoints.errors import CheckpointError
from checkpoints.fence import read_head
from checkpoints.store import ObjectStore
from orchestrator.agent.config import AgentConfig
from orchestrator.agent.lease import OwnerLease
from orchestrator.attempts import EndReason, StopReason
from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.fold import RunState
from orchestrator.ledger.requests import RequestKind, read_requests
from orchestrator.ledger.state import StateReader
from orchestrator.policy.situation import situation

_log = logging.getLogger(__name__)
# Looks at the owner's heartbeat per lease: each is a GET that somebody pays for.
_LEASE_LOOKS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """Why to end the attempt; `saves` unless nothing that is saved could count any more."""

    reason: EndReason
    why: str
    saves: bool = True


class Guards:
    """All that node 0 watches in the run folder; instants are monotonic seconds."""

    def __init__(
        self,
        store: ObjectStore,
        state: RunState,
        config: AgentConfig,
        clock: Clock,
        *,
        attempt: int,
        now: float,
    ) -> None:
        self._store, self._state, self._config, self._clock = store, state, config, clock
        self._attempt = attempt
        self._states = StateReader(store, state.record)
        self._lease: OwnerLease | None = None
        if config.owner is not None:
            self._lease = OwnerLease(
                store,
                config.owner,
                lease_seconds=config.lease_seconds,
                silent_seconds=config.silent_seconds,
                monotonic_now=now,
            )
        self._lease_look_s = min(config.lease_seconds, config.silent_seconds) / _LEASE_LOOKS
        self._guarded_at = self._asked_at = self._leased_at = now

    def look(self, now: float) -> Leave | None:
        """Look at whatever is due; a store or a ledger that cannot be read ends nothing."""
        try:
            return self._look(now)
        except (CheckpointError, OrchestratorError) as error:
            _log.warning("cannot look after the run, and will try again: %s", error)
            return None

    def _look(self, now: float) -> Leave | None:
        config = self._config
        if self._lease is not None and now - self._leased_at >= self._lease_look_s:
            self._leased_at = now
            if self._lease.is_lost(now):
                why = "the owner's heartbeat stands still"
                return Leave(reason=EndReason.PREEMPTED, why=why)
        if now - self._asked_at >= config.upload_seconds:
            self._asked_at = now
            if (asked := self._requested()) is not None:
                return asked
        if now - self._guarded_at >= config.guard_seconds:
            self._guarded_at = now
            return self._fenced() or self._over_budget()
        return None

    def _requested(self) -> Leave | None:
        for request in read_requests(self._store):
            if not request.is_meant_for(self._state.launched_at):
                continue  # meant for an earlier launch of the run
            is_stop = request.kind is RequestKind.STOP
            return Leave(
                reason=EndReason.STOPPED if is_stop else EndReason.DRAINED,
                why=f"{request.kind.value} was requested by {request.by}",
            )
        return None

    def _fenced(self) -> Leave | None:
        """Look at HEAD: a zombie would otherwise burn money until its next commit fails."""
        head = read_head(self._store)
        if head is None or head[0].attempt <= self._attempt:
            return None
        why = f"attempt {head[0].attempt} owns the run"
        return Leave(reason=EndReason.FENCED, why=why, saves=False)

    def _over_budget(self) -> Leave | None:
        return stop_by_policy(self._states.read(), self._clock)


def stop_by_policy(state: RunState, clock: Clock) -> Leave | None:
    """Return why to leave if the budget is used up or a stop was requested; else None.

    The only guard of the budget where our plugin is missing. Where nodes are is not ours to decide.
    """
    stop = situation(state, None, clock.now()).reason_to_stop()
    if stop is not None and stop.reason in (StopReason.BUDGET, StopReason.REQUESTED):
        return Leave(reason=EndReason.STOPPED, why=stop.why)
    return None
