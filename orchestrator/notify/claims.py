"""Who tells a piece of news: the first to create its object in the run folder, and nobody else.

Claimed, then sent, then marked as sent. A claim whose process died before the mark is taken over
by another one once it is old: whether the message got out is not known, and it says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.errors import ObjectExists, ObjectMissing, VersionMismatch
from checkpoints.layout import NOTIFIED, notified_key
from checkpoints.store import ObjectStore
from orchestrator.clock import Clock
from orchestrator.ledger.facts import Instant
from orchestrator.news import Level, News
from orchestrator.spec import NewsKind

# Older claims are dead: who lives renews its own before each try.
DEAD_AFTER = timedelta(minutes=10)
_RENEW_AFTER = timedelta(minutes=3)
# What is left of those ten minutes for one message: a mail server may take its time.
_SENDING_TAKES = timedelta(minutes=2)
# A message that kills who sends it is not to do so for ever.
_MOST_CLAIMS = 3


class Claim(BaseModel):
    """One message, who sends it, and since when that is so; without addresses."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    schema_version: int = 1
    key: str
    kind: NewsKind
    title: str
    text: str
    level: Level
    by: str
    at: Instant
    num_claims: int = 1
    sent_at: Instant | None = None

    @property
    def may_have_been_sent(self) -> bool:
        """Say whether a process before this one may have sent it."""
        return self.num_claims > 1


@dataclass(slots=True)
class Held:
    """A claim of ours, and the version to name when it is renewed."""

    claim: Claim
    version: str


class Claims:
    """One process's claims on the news of a run; each method may raise StoreError."""

    def __init__(self, store: ObjectStore, writer: str, clock: Clock, log: logging.Logger) -> None:
        self._store, self._writer, self._clock, self._log = store, writer, clock, log
        self._settled: set[str] = set()
        """Objects that ask for nothing more: sent, or being sent by us."""

    def take_over(self) -> Iterator[Held]:
        """Yield claims of processes that died before they could mark them as sent; now ours."""
        for entry in self._store.list(NOTIFIED):
            if entry.key not in self._settled:
                held = self._take_over(entry.key)
                if held is not None:
                    yield held

    def claim(self, news: News) -> Held | None:
        """Claim a piece of news; None where it was told, or another process is about to."""
        key = notified_key(news.key)
        if key in self._settled:
            return None
        claim = Claim(
            **{name: getattr(news, name) for name in ("key", "kind", "title", "text", "level")},
            by=self._writer,
            at=self._clock.now(),
        )
        try:
            version = self._store.create(key, _encoded(claim))
        except ObjectExists:
            found = self._read(key)
            if found is None or found.claim.by != self._writer or found.claim.sent_at is not None:
                return None
            claim, version = found.claim, found.version  # an earlier try, with its reply lost
        self._settled.add(key)
        return Held(claim, version)

    def renew(self, held: Held) -> bool:
        """Say whether a claim is still ours, and keep it so."""
        now = self._clock.now()
        if now - held.claim.at < _RENEW_AFTER:
            return True
        key, renewed = notified_key(held.claim.key), held.claim.model_copy(update={"at": now})
        try:
            version = self._store.replace(key, _encoded(renewed), held.version)
        except VersionMismatch:
            found = self._read(key)
            if found is None or found.claim.by != self._writer:
                return False
            renewed, version = found.claim, found.version
        held.claim, held.version = renewed, version
        return True

    def is_good(self, held: Held) -> bool:
        """Say whether no other process may take the claim over while its message is sent."""
        return self._clock.now() - held.claim.at < DEAD_AFTER - _SENDING_TAKES

    def mark_sent(self, held: Held) -> None:
        """Write down that the message got out."""
        sent = held.claim.model_copy(update={"sent_at": self._clock.now()})
        self._store.put(notified_key(sent.key), _encoded(sent))

    def _take_over(self, key: str) -> Held | None:
        found, now = self._read(key), self._clock.now()
        if found is None or found.claim.sent_at is not None:
            self._settled.add(key)
            return None
        claim = found.claim
        if claim.num_claims >= _MOST_CLAIMS or now - claim.at < DEAD_AFTER:
            return None
        ours = claim.model_copy(
            update={"by": self._writer, "at": now, "num_claims": claim.num_claims + 1}
        )
        try:
            version = self._store.replace(key, _encoded(ours), found.version)
        except VersionMismatch:
            return None  # somebody else was faster, or the dead one lives
        self._settled.add(key)
        return Held(ours, version)

    def _read(self, key: str) -> Held | None:
        """Return a claim, None for what is gone or cannot be read: it is left alone."""
        try:
            found = self._store.get(key)
            return Held(Claim.model_validate_json(found.data), found.version)
        except ObjectMissing:
            return None
        except ValidationError:
            self._log.warning("%s is damaged, and what it tells is not sent", key)
            return None


def _encoded(claim: Claim) -> bytes:
    return claim.model_dump_json().encode()
