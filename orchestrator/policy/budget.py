"""The budget beats the deadline: no on demand that the run could not pay for to its end."""

from __future__ import annotations

from orchestrator.policy.sight import (
    NEVER,
    NOWHERE,
    Choice,
    Mode,
    Policy,
    Sight,
    cheapest_spot,
    rooms,
)

# Of the price of the work on spot: what restarts and lost work take of it. An assumption.
_SPOT_MARGIN = 1.25
# On demand that is up is left if it costs this many times what there is: leaving costs, too.
_PATIENCE = 1.05


def choose_within_budget(policy: Policy, sight: Sight) -> Choice:
    """Return the policy's choice, or spot alone where its on demand is more than the run can pay.

    A run that stops on its budget before its last step has paid for nothing: late is better.
    """
    choice = policy.choose(sight)
    if choice.mode is not Mode.ON_DEMAND:
        return choice
    usd = _usd_to_the_end(sight, choice)
    is_up = (sight.mode, sight.zone) == (choice.mode, choice.zone)
    if usd <= sight.usd_left * (_PATIENCE if is_up else 1.0):
        return choice
    why = f"${usd:.2f} to the end with on demand, ${sight.usd_left:.2f} left of the budget"
    if spot := rooms(sight):
        zone = cheapest_spot(sight, spot)
        return Choice(Mode.SPOT, zone, NEVER, f"{why}: spot in {sight.zones[zone].name}")
    return Choice(Mode.IDLE, NOWHERE, NEVER, f"{why}: waiting for spot")


def _usd_to_the_end(sight: Sight, choice: Choice) -> float:
    """Return what is paid if on demand is kept as long as was chosen, and spot does the rest."""
    work = max(0.0, sight.work_left - sight.unsaved)
    hours = min(work, max(choice.until - sight.now, 0.0))
    rest = work - hours
    usd = (hours + _start(sight, choice)) * sight.zones[choice.zone].on_demand
    if sight.mode is not Mode.ON_DEMAND:
        usd += sight.move(choice.zone)
    return usd + _SPOT_MARGIN * rest * min(sight.spot)


def _start(sight: Sight, choice: Choice) -> float:
    """Return the hours that are paid before training goes on."""
    is_up = (sight.mode, sight.zone) == (choice.mode, choice.zone)
    return max(0.0, sight.ready_at - sight.now) if is_up else sight.restart
