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
# What is usual for the other places together: how often they lose all room, and have some again.
_USUAL_OTHERS = (0.5, 0.25)
_OTHERS_WEIGHT = 4.0
# Chance that a place of several zones has room when a node is lost there.
_USUAL_SECOND = 0.15


class Seen:
    """The spells of zones, of places, and for each place of all other ones together."""

    def __init__(self, sight: Sight) -> None:
        num_places = 1 + max(zone.place for zone in sight.zones)
        self._num_sightings = 0
        self.zones = [Spells() for _ in sight.zones]
        self.places = [Spells() for _ in range(num_places)]
        self.others = [Spells() for _ in range(num_places)]

    def see(self, sight: Sight, before: float) -> None:
        """Take the sightings before an hour."""
        while self._num_sightings < len(sight.sightings):
            hour, zone, is_up = sight.sightings[self._num_sightings]
            if hour >= before:
                return
            self._num_sightings += 1
            self.zones[zone].see(hour, is_up=is_up)
            place = sight.zones[zone].place
            rooms = [
                bool(spells.is_up)
                for spells, one in zip(self.zones, sight.zones, strict=True)
                if one.place == place
            ]
            self.places[place].see(hour, is_up=any(rooms))
            for other, spells in enumerate(self.others):
                if other != place:
                    spells.see(hour, is_up=self.is_up_beside(other))

    def is_up_beside(self, place: int) -> bool:
        """Say whether any other place has room."""
        return any(bool(spells.is_up) for other, spells in enumerate(self.places) if other != place)

    def outlook(self, sight: Sight, at: float, spot: Sequence[float]) -> Outlook:
        """Return what follows from it at an hour, for these prices of zones."""
        best = _cheapest_zones(sight, spot)
        zones = [spells.at(at) for spells in self.zones]
        places = [spells.at(at) for spells in self.places]
        shares = np.array([spells.share_up() for spells in places])
        return _outlook(
            sight,
            [spot[zone] for zone in best],
            losses=np.array([zones[zone].losses() for zone in best]),
            shares=shares,
            place_losses=np.array([spells.losses() for spells in places]),
            place_returns=np.array([spells.returns() for spells in places]),
            second=np.array(
                [_second(sight, zones, place, zone) for place, zone in enumerate(best)]
            ),
            others=np.array(
                [
                    _others_rates(spells.at(at), place, shares)
                    for place, spells in enumerate(self.others)
                ]
            ),
        )


def usual_outlook(sight: Sight, spot: Sequence[float]) -> Outlook:
    """Return what is believed of a market of which nothing was seen."""
    best = _cheapest_zones(sight, spot)
    num_places = len(best)
    usual = np.tile(USUAL_LOSSES, (num_places, 1))
    zones_of = [sum(zone.place == place for zone in sight.zones) for place in range(num_places)]
    return _outlook(
        sight,
        [spot[zone] for zone in best],
        losses=usual,
        shares=np.full(num_places, USUAL_SHARE),
        place_losses=usual,
        place_returns=np.tile(USUAL_RETURNS, (num_places, 1)),
        second=np.array([_USUAL_SECOND if count > 1 else 0.0 for count in zones_of]),
        others=np.tile(_USUAL_OTHERS if num_places > 1 else (1.0, 0.0), (num_places, 1)),
    )


def _outlook(
    sight: Sight, spot: Sequence[float], *, losses: Array, shares: Array, **rates: Array
) -> Outlook:
    on_demand = [
        min(zone.on_demand for zone in sight.zones if zone.place == place)
        for place in range(len(spot))
    ]
    prices, moves = np.array(spot), np.array(sight.move_usd, dtype=float)
    return Outlook(
        spot=prices,
        on_demand=np.array(on_demand),
        losses=losses,
        moves=moves,
        odds=_odds(prices, losses, shares, moves, sight.restart),
        **rates,
    )


def _cheapest_zones(sight: Sight, spot: Sequence[float]) -> list[int]:
    """Return the zone of each place whose spot is cheapest."""
    num_places = 1 + max(zone.place for zone in sight.zones)
    return [
        min(
            (zone for zone, one in enumerate(sight.zones) if one.place == place),
            key=lambda zone: (spot[zone], zone),
        )
        for place in range(num_places)
    ]


def _second(sight: Sight, zones: Sequence[Spells], place: int, zone: int) -> float:
    """Return the chance that another zone of the place has room."""
    none = 1.0
    for other, one in enumerate(sight.zones):
        if one.place == place and other != zone:
            none *= 1 - zones[other].share_up()
    return 1 - none


def _others_rates(spells: Spells, place: int, shares: Array) -> tuple[float, float]:
    """Return how often the others lose all room, and have some again, per hour."""
    if len(shares) == 1:
        return 1.0, 0.0
    some = 1 - float(np.prod(np.delete(1 - shares, place)))
    down = spells.overall(is_up=True, usual=(1 - some) / 2, weight=_OTHERS_WEIGHT)
    up = spells.overall(is_up=False, usual=some / 2, weight=_OTHERS_WEIGHT)
    return down, up


def _odds(spot: Array, losses: Array, shares: Array, moves: Array, restart: float) -> Array:
    """Return which other place one goes to from each: the best that has room.

    Best by the price of an hour's training: of a life that begins there, with the move.
    """
    lives = np.array([mean_life(rates, _LONGEST_LIFE) for rates in losses])
    odds = np.zeros_like(moves)
    for place in range(len(spot)):
        usd = (spot * lives + moves[place]) / np.maximum(lives - restart, 1e-3)
        rest = 1.0
        for other in np.argsort(usd, kind="stable"):
            if other != place:
                odds[place, other] = rest * shares[other]
                rest *= 1 - shares[other]
    total = odds.sum(axis=1, keepdims=True)
    return odds / np.where(total > 0, total, 1)
