"""What a run without a deadline does: spot where it is to be had, and no waiting for it."""

from __future__ import annotations

from orchestrator.policy.by_price import MIN_GAIN, MIN_STAY
from orchestrator.policy.sight import (
    NEVER,
    NOWHERE,
    Choice,
    Mode,
    Sight,
    cheapest_on_demand,
    cheapest_spot,
    rooms,
)

_STAY_HOURS = MIN_STAY.total_seconds() / 3600


class Prompt:
    """The cheapest spot, else on demand, as `decide` has it; only spot if nothing else may be."""

    looks_around = False

    def __init__(self, *, falls_back: bool) -> None:
        """Say whether on demand may be had."""
        self._falls_back = falls_back

    def choose(self, sight: Sight) -> Choice:
        """Return spot if there may be any, else on demand, or nothing where only spot may be."""
        if sight.mode is Mode.SPOT:
            return Choice(sight.mode, sight.zone, NEVER, f"{sight.zones[sight.zone].name} is up")
        spot = rooms(sight)
        zone = cheapest_spot(sight, spot) if spot else NOWHERE
        if not self._falls_back:
            mode = Mode.SPOT if spot else Mode.IDLE
            return Choice(mode, zone, NEVER, "only spot may be bought")
        if sight.mode is Mode.ON_DEMAND:
            if sight.now < sight.ready_at + _STAY_HOURS or not self._pays(sight, zone):
                until = max(sight.now, sight.ready_at) + _STAY_HOURS
                return Choice(Mode.ON_DEMAND, sight.zone, until, "on demand is up")
            return Choice(Mode.SPOT, zone, NEVER, f"${sight.spot[zone]:.2f}/h pays for the way")
        paid = cheapest_on_demand(sight)
        if spot and sight.spot[zone] < sight.zones[paid].on_demand:
            return Choice(Mode.SPOT, zone, NEVER, f"${sight.spot[zone]:.2f}/h is the cheapest spot")
        return Choice(Mode.ON_DEMAND, paid, sight.now + _STAY_HOURS, "no spot, and no waiting")

    def _pays(self, sight: Sight, zone: int) -> bool:
        """Say whether spot in a zone saves more than a few times the way there, and back."""
        if zone == NOWHERE:
            return False
        price = sight.zones[sight.zone].on_demand
        saved = (price - sight.spot[zone]) * sight.work_left
        return saved >= MIN_GAIN * (2 * price * sight.restart + sight.move(zone))
