"""When a local node is taken back: as the spec's script says, or as the simulated market does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from checkpoints.layout import CHECKPOINTS, manifest_key, parse_checkpoint_prefix
from checkpoints.places import Places
from orchestrator.attempts import EndReason
from orchestrator.cloud.local.market import SyntheticMarket
from orchestrator.ledger.fold import LaunchView, RunState
from orchestrator.offers import Market, Offer
from orchestrator.spec import ScriptedPreemption

SCRIPT_DETAIL = "script"
MARKET_DETAIL = "market"
# Wall seconds of notice that the simulated market gives, when it gives any.
MARKET_NOTICE_S = 5.0
# How long a zone stays empty after a scripted preemption, in market time.
_EMPTY_AFTER_LOSS = timedelta(minutes=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preemption:
    """A node is to be taken back now."""

    notice_seconds: float
    detail: str
    only_during_checkpoint: bool = False


class PreemptionSource(Protocol):
    """Decides about capacity and its loss; the script and the market are its two forms."""

    def has_capacity(self, offer: Offer, at: datetime, state: RunState) -> bool:
        """Say whether a node can be had at a market instant."""
        ...

    def due(
        self, launch: LaunchView, at: datetime, state: RunState, last_step: int | None
    ) -> Preemption | None:
        """Say whether the launch's node is to be taken back; `last_step` is its last report."""
        ...


class MarketPreemptions:
    """Preemptions of the seeded market."""

    def __init__(self, market: SyntheticMarket) -> None:
        self._market = market

    def has_capacity(self, offer: Offer, at: datetime, state: RunState) -> bool:
        """Follow the zone's trace."""
        return self._market.has_capacity(offer, at)

    def due(
        self, launch: LaunchView, at: datetime, state: RunState, last_step: int | None
    ) -> Preemption | None:
        """Take the node back when its zone's spell is over."""
        if self._market.has_capacity(launch.offer, at):
            return None
        notice = MARKET_NOTICE_S if self._market.spell(launch.offer, at).gives_notice else 0.0
        return Preemption(notice_seconds=notice, detail=MARKET_DETAIL)


class ScriptedPreemptions:
    """Preemptions in the order of the spec; those that have happened are read off the ledger."""

    def __init__(self, script: Sequence[ScriptedPreemption]) -> None:
        self._script = script

    def has_capacity(self, offer: Offer, at: datetime, state: RunState) -> bool:
        """Give capacity everywhere but where a node was lost a moment ago."""
        if offer.market is Market.ON_DEMAND or not state.launches:
            return True
        last = state.launches[-1]
        was_lost_here = last.reason is EndReason.PREEMPTED and last.offer.zone == offer.zone
        since = at - (last.ended_at or at)
        return not (was_lost_here and since < _EMPTY_AFTER_LOSS)

    def due(
        self, launch: LaunchView, at: datetime, state: RunState, last_step: int | None
    ) -> Preemption | None:
        """Take the node back when the next line of the script comes true."""
        index = sum(1 for one in state.launches if (one.detail or "").startswith(SCRIPT_DETAIL))
        if index >= len(self._script) or last_step is None:
            return None
        line = self._script[index]
        if line.after_step is not None and last_step < line.after_step:
            return None
        return Preemption(
            notice_seconds=line.notice_seconds,
            detail=f"{SCRIPT_DETAIL} {index + 1} of {len(self._script)}"
            + (" during a checkpoint" if line.during else f" after step {line.after_step}"),
            only_during_checkpoint=line.during is not None,
        )


def find_unfinished_checkpoint(places: Places, attempt: int) -> str | None:
    """Return the key of an object that `attempt` has written of a checkpoint without a manifest."""
    keys = [entry.key for _, entry in places.look(CHECKPOINTS).found]
    present = set(keys)
    for key in keys:
        found = parse_checkpoint_prefix(key)
        if found is not None and found[1] == attempt and manifest_key(*found) not in present:
            return key
    return None
