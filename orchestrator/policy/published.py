"""Policies by their published names, to compare with.

Where the papers' code differs from their text, it is the text that is followed.
"""

from __future__ import annotations

from orchestrator.policy.sight import (
    NEVER,
    NOWHERE,
    Choice,
    Mode,
    Sight,
    cheapest_on_demand,
    cheapest_spot,
    on_demand_to_the_end,
    rooms,
)


class OnDemand:
    """Never spot: what most people pay."""

    looks_around = False

    def choose(self, sight: Sight) -> Choice:
        """Return on demand."""
        zone = sight.zone if sight.mode is Mode.ON_DEMAND else cheapest_on_demand(sight)
        return Choice(Mode.ON_DEMAND, zone, NEVER, "on demand is what was asked for")


class Greedy:
    """Spot wherever it is, until the deadline leaves no time: SkyPilot's default, with a net."""

    looks_around = False

    def choose(self, sight: Sight) -> Choice:
        """Return the cheapest spot; wait where there is none."""
        if (net := on_demand_to_the_end(sight)) is not None:
            return net
        if sight.mode is not Mode.IDLE:
            return _stay(sight)
        if spot := rooms(sight):
            zone = cheapest_spot(sight, spot)
            return Choice(Mode.SPOT, zone, NEVER, f"${sight.spot[zone]:.2f}/h is the cheapest spot")
        until = sight.now + sight.slack - sight.reserve
        return Choice(Mode.IDLE, NOWHERE, until, f"no spot, and {sight.slack:.1f} h to spare")


class UniformProgress:
    """Keep up with the line from nothing done at the start to all done at the deadline.

    Source: Wu et al., "Can't Be Late: Optimizing Spot Instance Savings under Deadlines", NSDI'24,
    section 4. Over several regions, spot is taken where it is cheapest. On demand is kept until
    spot is up: the authors' code ends it before it knows, and pays for starts.
    """

    looks_around = False

    def choose(self, sight: Sight) -> Choice:
        """Return spot where it is up, on demand when behind, else nothing."""
        if (net := on_demand_to_the_end(sight)) is not None:
            return net
        if sight.mode is Mode.SPOT:
            return _stay(sight)
        rate = sight.work / sight.deadline
        done = sight.work - sight.work_left
        ahead = done - rate * sight.now
        spot = rooms(sight)
        if sight.mode is Mode.ON_DEMAND:
            # Hysteresis: far enough ahead to pay for the way there and back.
            if spot and ahead >= 2 * rate * sight.restart:
                zone = cheapest_spot(sight, spot)
                why = f"{ahead:.1f} h ahead of the line, and spot is ${sight.spot[zone]:.2f}/h"
                return Choice(Mode.SPOT, zone, NEVER, why)
            until = sight.now + sight.patience
            return Choice(Mode.ON_DEMAND, sight.zone, until, f"{-ahead:.1f} h behind the line")
        if spot:
            zone = cheapest_spot(sight, spot)
            return Choice(Mode.SPOT, zone, NEVER, f"${sight.spot[zone]:.2f}/h is the cheapest spot")
        if ahead < 0:
            zone = cheapest_on_demand(sight)
            why = f"no spot, and {-ahead:.1f} h behind the line"
            return Choice(Mode.ON_DEMAND, zone, sight.now + sight.patience, why)
        until = min(done / rate, sight.now + sight.slack - sight.reserve)
        why = f"no spot, and {ahead:.1f} h ahead of the line"
        return Choice(Mode.IDLE, NOWHERE, until, why)


def _stay(sight: Sight) -> Choice:
    return Choice(sight.mode, sight.zone, NEVER, f"{sight.zones[sight.zone].name} is up")
