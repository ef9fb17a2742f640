"""Tells the news of a run: looks for it, claims it, and sends it to each address until it is taken.

All in `step`, which neither waits nor raises for what a store or a service does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from checkpoints.errors import CheckpointError
from checkpoints.store import ObjectStore
from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.fold import RunState
from orchestrator.ledger.heartbeat import HeartbeatReader
from orchestrator.ledger.journal import new_writer
from orchestrator.ledger.record import RunRecord
from orchestrator.ledger.state import StateReader
from orchestrator.news import news
from orchestrator.notify.claims import Claims, Held
from orchestrator.notify.messenger import Address
from orchestrator.view import RunView

_FIRST_RETRY = timedelta(seconds=5)
_LAST_RETRY = timedelta(minutes=5)
# A claim is dead after ten minutes, so there is no use in looking for one more often.
_TAKE_OVER_EVERY = timedelta(minutes=2)
_AGAIN = (
    "(This may have been sent before: the process that was to send it died before it could say so.)"
)


@dataclass(slots=True)
class _Receiver:
    """An address, and when it is to be tried again after a failure."""

    address: Address
    retry_at: datetime | None = None
    pause: timedelta = _FIRST_RETRY


@dataclass(slots=True)
class _Message:
    """A claim of ours, and who has yet to get it."""

    held: Held
    left: list[_Receiver]
    is_out: bool = False
    """At least one address has it, so nobody is to send it again."""
    is_marked: bool = False


class Teller:
    """One process's telling of a run's news; another process's never tells the same."""

    def __init__(
        self,
        store: ObjectStore,
        record: RunRecord,
        addresses: Sequence[Address],
        clock: Clock,
        log: logging.Logger,
    ) -> None:
        self._clock, self._log = clock, log
        self._states, self._heartbeats = StateReader(store, record), HeartbeatReader(store)
        self._claims = Claims(store, new_writer("teller"), clock, log)
        self._receivers = [_Receiver(address) for address in addresses]
        self._messages: list[_Message] = []
        self._told: set[str] = set()
        self._took_over_at: datetime | None = None

    @property
    def is_done(self) -> bool:
        """Say whether everything that was found has been sent and marked."""
        return not self._messages

    def step(self) -> bool:
        """Look once for news, and try to send what is due; return whether the look worked."""
        try:
            self._look()
        except (CheckpointError, OrchestratorError) as error:
            self._log.warning("cannot look for news, trying again: %s", error)
            has_looked = False
        else:
            has_looked = True
        self._deliver()
        return has_looked

    def hurry(self) -> None:
        """Try every address again at once: there is little time left."""
        for receiver in self._receivers:
            receiver.retry_at, receiver.pause = None, _FIRST_RETRY

    def _look(self) -> None:
        state = self._states.read()
        asked = state.spec.tracking.notify
        if asked is not None:
            self._take_over()
        for one in news(self._view(state)):
            if one.key in self._told:
                continue
            # What is not asked for when it happens is not news either when it is asked for later.
            is_asked = asked is not None and one.kind in asked.on
            held = self._claims.claim(one) if is_asked else None
            self._told.add(one.key)
            if held is not None:
                self._add(held)

    def _view(self, state: RunState) -> RunView:
        heartbeats = tuple(self._heartbeats.read())
        return RunView(state=state, measured=(), heartbeats=heartbeats, as_of=self._clock.now())

    def _take_over(self) -> None:
        now = self._clock.now()
        if self._took_over_at is not None and now - self._took_over_at < _TAKE_OVER_EVERY:
            return
        for held in self._claims.take_over():
            self._add(held)
        self._took_over_at = now

    def _add(self, held: Held) -> None:
        self._messages.append(_Message(held, list(self._receivers)))

    def _deliver(self) -> None:
        self._messages = [one for one in self._messages if self._is_ours(one)]
        for receiver in self._receivers:
            self._deliver_to(receiver)
        for message in self._messages:
            self._mark(message)
        self._messages = [one for one in self._messages if one.left or not one.is_marked]

    def _deliver_to(self, receiver: _Receiver) -> None:
        """Send an address all that it lacks, in order; at a failure leave it alone for a while."""
        if receiver.retry_at is not None and self._clock.now() < receiver.retry_at:
            return
        for message in self._messages:
            is_ours = message.is_out or self._claims.is_good(message.held)
            if receiver not in message.left or not is_ours:
                continue
            if not self._send(receiver.address, message):
                receiver.retry_at = self._clock.now() + receiver.pause
                self._log.warning(
                    "%s did not take a notification; it is tried again in %.0f s",
                    receiver.address.name,
                    receiver.pause.total_seconds(),
                )
                receiver.pause = min(receiver.pause * 2, _LAST_RETRY)
                return
            receiver.retry_at, receiver.pause = None, _FIRST_RETRY
            message.left.remove(receiver)
            message.is_out = True
            self._mark(message)

    def _is_ours(self, message: _Message) -> bool:
        """Renew the claim while nobody has the message; False where another has taken it over."""
        try:
            return message.is_out or self._claims.renew(message.held)
        except CheckpointError as error:
            self._log.warning("cannot renew the claim on a notification: %s", error)
            return True

    def _send(self, address: Address, message: _Message) -> bool:
        claim = message.held.claim
        text = f"{claim.text}\n{_AGAIN}" if claim.may_have_been_sent else claim.text
        return address.send(claim.title, text, claim.level)

    def _mark(self, message: _Message) -> None:
        if not message.is_out or message.is_marked:
            return
        try:
            self._claims.mark_sent(message.held)
        except CheckpointError as error:
            self._log.warning("cannot write down that a notification was sent: %s", error)
            return
        message.is_marked = True
