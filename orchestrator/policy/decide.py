"""`decide()`: keep, launch where, wait until when, or stop; pure, and each answer with its reason.

All instants and durations are market time. What ends a run is decided here, above any policy; where
and when to run by the policy that the limits name, which sees what `seeing` makes of the facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from orchestrator.attempts import EndReason, RetryBudget, StopReason, charged_to
from orchestrator.cost import egress_usd
from orchestrator.offers import MarketPreference, Offer
from orchestrator.policy.answers import Decision, Drain, Keep, Launch, Stop, Wait
from orchestrator.policy.budget import choose_within_budget
from orchestrator.policy.by_price import choose_by_price
from orchestrator.policy.history import (
    MAX_REFUSALS,
    History,
    LaunchRecord,
    Limits,
    clouds_given_up,
    of_willing_clouds,
)
from orchestrator.policy.seeing import View, look
from orchestrator.policy.sight import Choice, Mode

# Both count ends in a row without a new checkpoint in between.
MAX_PREEMPTIONS = 50
MAX_FAILURES = 3


def decide(history: History, offers: Sequence[Offer], limits: Limits, now: datetime) -> Decision:
    """Return what to do at `now`; never does I/O and never looks at a clock."""
    allowed = [offer for offer in offers if limits.market.allows(offer.market)]
    if (stop := reason_to_stop(history, allowed, limits)) is not None:
        return stop
    allowed = of_willing_clouds(allowed, history, now)
    if limits.market is MarketPreference.SPOT_WITH_FALLBACK:
        view = look(history, allowed, limits, now)
        if view is not None:
            return _by_policy(view, limits, now)
    return choose_by_price(history, _affordable(history, allowed, limits), limits, now)


def _by_policy(view: View, limits: Limits, now: datetime) -> Decision:
    """Return the policy's choice as something to do."""
    from orchestrator.policy.named import make_policy  # numpy: 80 ms that most commands need not

    sight = view.sight
    choice = choose_within_budget(make_policy(limits.policy.value), sight)
    if sight.mode is not Mode.IDLE:
        is_same = (choice.mode, choice.zone) == (sight.mode, sight.zone)
        return Keep(why=choice.why) if is_same else Drain(why=choice.why)
    offer = None if choice.mode is Mode.IDLE else view.offer(choice.mode, choice.zone)
    if offer is None:
        return Wait(until=_until(view, choice, limits, now), why=choice.why)
    return Launch(offer=offer, why=choice.why)


def _until(view: View, choice: Choice, limits: Limits, now: datetime) -> datetime:
    """Return when to ask again; at the latest when a zone that had no room is worth another try."""
    return max(now + limits.patience, view.instant(min(choice.until, view.doubtful_at)))


def reason_to_stop(history: History, offers: Sequence[Offer], limits: Limits) -> Stop | None:
    """Return why the run is to end, None if it is not; above any policy."""
    if history.is_complete:
        return Stop(reason=StopReason.DONE, why="the last step is committed")
    if history.stop_requested:
        return Stop(reason=StopReason.REQUESTED, why="a stop was requested")
    committed = history.usd + _unavoidable_usd(history, offers, limits)
    if committed >= limits.budget_usd:
        what = "saving" if history.is_up else "another node"
        return Stop(
            reason=StopReason.BUDGET,
            why=f"${history.usd:.2f} spent, and {what} takes the rest of ${limits.budget_usd}",
        )
    num_failures = _count(history, RetryBudget.FAILURES)
    if num_failures >= MAX_FAILURES:
        return Stop(
            reason=StopReason.TOO_MANY_FAILURES,
            why=f"{num_failures} launches in a row failed",
        )
    given_up = clouds_given_up(history)
    if offers and all(offer.cloud in given_up for offer in offers):
        clouds = ", ".join(sorted({offer.cloud for offer in offers}))
        return Stop(
            reason=StopReason.TOO_MANY_FAILURES,
            why=f"the account was refused {MAX_REFUSALS} times in a row: {clouds}",
        )
    num_preemptions = _count(history, RetryBudget.PREEMPTIONS)
    if num_preemptions >= MAX_PREEMPTIONS:
        return Stop(
            reason=StopReason.TOO_MANY_PREEMPTIONS,
            why=f"{num_preemptions} nodes in a row were lost before a checkpoint",
        )
    return None


def _unavoidable_usd(history: History, offers: Sequence[Offer], limits: Limits) -> Decimal:
    """Return what a stop costs from here, or at the least a start and a stop where nothing runs."""
    if history.is_up:
        stop = history.usd_per_hour * Decimal(limits.stop_margin / timedelta(hours=1))
        return stop + history.save_usd
    trusted = [offer for offer in offers if offer.doubt is None] or offers
    return min((_least_usd(history, offer, limits) for offer in trusted), default=Decimal(0))


def _affordable(history: History, offers: Sequence[Offer], limits: Limits) -> Sequence[Offer]:
    """Return the offers that the rest of the budget can at least start, save on and stop."""
    if history.is_up:
        return offers
    left = limits.budget_usd - history.usd
    return [offer for offer in offers if _least_usd(history, offer, limits) < left] or offers


def _least_usd(history: History, offer: Offer, limits: Limits) -> Decimal:
    """Return what a start and a stop cost there, and moving the checkpoint to it."""
    hours = Decimal((limits.restart + limits.stop_margin) / timedelta(hours=1))
    usd = offer.usd_per_hour * history.num_nodes * hours
    if history.checkpoint_place is None:
        return usd
    return usd + egress_usd(history.checkpoint_bytes, history.checkpoint_place, offer.place)


def _count(history: History, budget: RetryBudget) -> int:
    """Count the ends since the last launch that committed something: progress forgives."""
    count = 0
    for launch in reversed(history.launches):
        if launch.reason is not None and _charged_to(launch) is budget:
            count += 1
        if launch.has_progressed:
            break
    return count


def _charged_to(launch: LaunchRecord) -> RetryBudget:
    """Return the retry budget of an end; whoever stops without a run that ends is wrong about it.

    A node whose clock is far ahead, for one, takes the budget for used up.
    """
    assert launch.reason is not None
    if launch.reason is EndReason.STOPPED and launch.ready_at is not None:
        return RetryBudget.FAILURES
    return charged_to(launch.reason)
