"""What has been seen of a market, and what follows from it: the outlook that tables are for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.policy.hazards import (
    USUAL_LOSSES,
    USUAL_RETURNS,
    USUAL_SHARE,
    Spells,
    mean_life,
)
from orchestrator.policy.sight import Sight
from orchestrator.policy.values import Array, Outlook

# Beyond, a life makes no difference to a choice.
_LONGEST_LIFE = 24.0
# What is usual for the other zones together: how often they lose all room, and have some again.
_USUAL_OTHERS = (0.5, 0.25)
_OTHERS_WEIGHT = 4.0


class Seen:
    """The spells of zones, and for each zone of all other ones together."""

    def __init__(self, sight: Sight) -> None:
        self._num_sightings = 0
        self.zones = [Spells() for _ in sight.zones]
        self.others = [Spells() for _ in sight.zones]

    def see(self, sight: Sight, before: float) -> None:
        """Take the sightings before an hour."""
        while self._num_sightings < len(sight.sightings):
            hour, zone, is_up = sight.sightings[self._num_sightings]
            if hour >= before:
                return
            self._num_sightings += 1
            self.zones[zone].see(hour, is_up=is_up)
            num_up = sum(spells.is_up is True for spells in self.zones)
            for other, spells in enumerate(self.others):
                is_up_beside = num_up > (self.zones[other].is_up is True)
                if other != zone and is_up_beside is not spells.is_up:
                    spells.see(hour, is_up=is_up_beside)

    def is_up_beside(self, zone: int) -> bool:
        """Say whether any other zone has room."""
        return any(spells.is_up for other, spells in enumerate(self.zones) if other != zone)

    def outlook(self, sight: Sight, at: float, spot: Sequence[float]) -> Outlook:
        """Return what follows from it at an hour, for these prices of zones."""
        zones = [spells.at(at) for spells in self.zones]
        shares = np.array([spells.share_up() for spells in zones])
        others = [
            _others_rates(spells.at(at), zone, shares) for zone, spells in enumerate(self.others)
        ]
        return _outlook(
            sight,
            spot,
            losses=np.array([spells.losses(sight.pace) for spells in zones]),
            returns=np.array([spells.returns() for spells in zones]),
            shares=shares,
            others=np.array(others),
        )


def usual_outlook(sight: Sight, spot: Sequence[float]) -> Outlook:
    """Return what is believed of a market of which nothing was seen."""
    num_zones = len(sight.zones)
    return _outlook(
        sight,
        spot,
        losses=np.tile(sight.pace * USUAL_LOSSES, (num_zones, 1)),
        returns=np.tile(USUAL_RETURNS, (num_zones, 1)),
        shares=np.full(num_zones, USUAL_SHARE),
        others=np.tile(_USUAL_OTHERS if num_zones > 1 else (1.0, 0.0), (num_zones, 1)),
    )


def _outlook(
    sight: Sight, spot: Sequence[float], *, losses: Array, shares: Array, **rates: Array
) -> Outlook:
    places = [zone.place for zone in sight.zones]
    prices = np.array(spot)
    moves = np.array(sight.move_usd, dtype=float)[np.ix_(places, places)]
    return Outlook(
        spot=prices,
        on_demand=np.array([zone.on_demand for zone in sight.zones]),
        losses=losses,
        moves=moves,
        odds=_odds(prices, losses, shares, moves, sight.restart),
        **rates,
    )


def _others_rates(spells: Spells, zone: int, shares: Array) -> tuple[float, float]:
    """Return how often the others lose all room, and have some again, per hour."""
    if len(shares) == 1:
        return 1.0, 0.0
    some = 1 - float(np.prod(np.delete(1 - shares, zone)))
    down = spells.overall(is_up=True, usual=(1 - some) / 2, weight=_OTHERS_WEIGHT)
    up = spells.overall(is_up=False, usual=some / 2, weight=_OTHERS_WEIGHT)
    return down, up


def _odds(spot: Array, losses: Array, shares: Array, moves: Array, restart: float) -> Array:
    """Return which other zone one goes to from each: the best that has room.

    Best by the price of an hour's training: of a life that begins there, with the move.
    """
    lives = np.array([mean_life(rates, _LONGEST_LIFE) for rates in losses])
    odds = np.zeros_like(moves)
    for zone in range(len(spot)):
        usd = (spot * lives + moves[zone]) / np.maximum(lives - restart, 1e-3)
        rest = 1.0
        for other in np.argsort(usd, kind="stable"):
            if other != zone:
                odds[zone, other] = rest * shares[other]
                rest *= 1 - shares[other]
    total = odds.sum(axis=1, keepdims=True)
    return odds / np.where(total > 0, total, 1)
