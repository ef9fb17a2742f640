"""A simulated spot market: which zone has capacity at which market instant, from a seed alone.

Spells alternate between capacity and none. Their lengths are mixtures of exponentials, because real
spot nodes are most likely to be lost soon after their start (a decreasing hazard).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.offers import Market, Offer

# (probability, mean hours) of each component. Chosen so that the hazard falls from about 1 per hour
# at the start to about 0.2 after some hours, the order of what is observed on public V100 traces.
_UP_SPELLS = ((0.5, 0.6), (0.5, 6.0))
_DOWN_SPELLS = ((0.7, 0.5), (0.3, 3.0))
_UP_AT_START = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class Spell:
    """A stretch of market time in which a zone has capacity, or has none."""

    is_up: bool
    start: datetime
    end: datetime
    gives_notice: bool


class SyntheticMarket:
    """Spot capacity per zone, the same for the same seed; on-demand capacity is always there."""

    def __init__(self, seed: int, origin: datetime) -> None:
        self._seed = seed
        self._origin = origin

    def has_capacity(self, offer: Offer, at: datetime) -> bool:
        """Say whether a node could be had (or kept) at a market instant."""
        return offer.market is Market.ON_DEMAND or self.spell(offer, at).is_up

    def spell(self, offer: Offer, at: datetime) -> Spell:
        """Return the spell that the zone is in."""
        dice = random.Random(f"{self._seed}/{offer.cloud}/{offer.zone}")
        start, is_up = self._origin, dice.random() < _UP_AT_START
        while True:
            length = timedelta(hours=_draw(dice, _UP_SPELLS if is_up else _DOWN_SPELLS))
            gives_notice = dice.random() < 0.5
            if start + length > at:
                return Spell(
                    is_up=is_up, start=start, end=start + length, gives_notice=gives_notice
                )
            start, is_up = start + length, not is_up


def _draw(dice: random.Random, mixture: tuple[tuple[float, float], ...]) -> float:
    pick = dice.random()
    for probability, mean in mixture:
        if pick < probability:
            return dice.expovariate(1 / mean)
        pick -= probability
    return dice.expovariate(1 / mixture[-1][1])
