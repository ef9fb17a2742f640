"""The plan of a run: what `orchestrate plan` prints is the very value that `launch` acts on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrator.cost import egress_usd
from orchestrator.errors import SpecError
from orchestrator.inputs import PreparedInputs, prepare_inputs
from orchestrator.memory import MemoryEstimate, require_memory
from orchestrator.notify.readiness import what_is_missing
from orchestrator.offers import MarketPreference, Offer, PriceTable, list_offers
from orchestrator.places import home_place, require_reachable, split_place
from orchestrator.policy.history import STOP_MARGIN, Limits
from orchestrator.policy.situation import RESTART
from orchestrator.prices import price_table
from orchestrator.spec import RunSpec
from orchestrator.weather import Weather, usual_pace, weather_for
from orchestrator.workload import Work, assumed_workload, checkpoint_bytes, work_hours
from train.config import resolve_num_steps

if TYPE_CHECKING:
    from orchestrator.forecast import Forecast
    from orchestrator.simulate.zone_trace import ZoneTrace

# Training time that a save takes, before any was measured; with Young's rule it sets the interval.
ASSUMED_STALL = timedelta(seconds=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Time and money: of the productive part alone, and of all of it on what may come."""

    productive: timedelta
    work: timedelta
    """With what saves hold it up."""
    usd_cheapest: Decimal
    usd_on_demand: Decimal
    """Of the work and one start where on demand is cheapest."""
    assumption: str
    interval: timedelta
    """Between saves."""
    weather: Weather
    forecast: Forecast
    is_recorded: bool
    """Its futures are from traces; else made up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """What it costs to take checkpoints to other places; `home` is where `store` is counted."""

    home: tuple[str, str]
    checkpoint_bytes: int | None
    """Size of one checkpoint, None where the model's size is unknown."""

    def move_usd(self, place: tuple[str, str]) -> Decimal | None:
        """Return the price of taking one checkpoint from the run's store to nodes there."""
        if self.checkpoint_bytes is None:
            return None
        return egress_usd(self.checkpoint_bytes, self.home, place)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """What will run, where it may run and what it may cost; `offers` are cheapest first."""

    spec: RunSpec
    prices: PriceTable
    offers: tuple[Offer, ...]
    num_steps: int | None
    inputs: PreparedInputs | None
    estimate: Estimate | None
    egress: Egress
    memory: MemoryEstimate | None
    """None on this machine, and where the model's size is unknown."""
    warnings: tuple[str, ...] = ()
    """What the spec asks for and would not get from here."""

    @property
    def usd_per_hour(self) -> Decimal:
        """Price of the first choice, all nodes."""
        return self.offers[0].usd_per_hour * self.spec.nodes.count

    @property
    def worst_case_usd(self) -> Decimal:
        """Most that the run can cost: it stops at its budget."""
        return self.spec.limits.budget_usd


def build_plan(
    spec: RunSpec,
    *,
    prepare: bool = False,
    offline: bool = False,
    traces: Sequence[ZoneTrace] | None = None,
) -> LaunchPlan:
    """Plan the run that `spec` describes; `infra: local`, or `prepare`, prepares its inputs.

    No cloud is asked for prices if `offline`. With `traces` the forecast is from that market.

    Raises:
        InputError: the data, the model or the traces cannot be used.
        UsageError: an address for notifications cannot be used.
        SpecError: nodes cannot reach the store, no offer fits, the model fits into no GPU's
            memory, or what is known to be needed is more than the deadline or the budget.
    """
    require_reachable(spec)
    unheard = what_is_missing(spec)
    prices = price_table(spec, offline=offline)
    offers = list_offers(prices, spec.nodes.accelerators, spec.clouds, spec.limits.market)
    memory = None if spec.is_local else require_memory(spec)
    egress = Egress(home=home_place(spec, offers), checkpoint_bytes=checkpoint_bytes(spec))
    # Before the inputs: what cannot be is not to be prepared for.
    estimate = None if spec.is_local else _estimate(spec, offers, egress, traces)
    inputs = prepare_inputs(spec) if spec.is_local or prepare else None
    num_steps = spec.train.num_steps
    if inputs is not None:
        num_steps = resolve_num_steps(spec.train, inputs.summary.num_sequences)
        _require_possible_script(spec, num_steps)
    return LaunchPlan(
        spec=spec,
        prices=prices,
        offers=offers,
        num_steps=num_steps,
        inputs=inputs,
        estimate=estimate,
        egress=egress,
        memory=memory,
        warnings=() if unheard is None else (unheard,),
    )


def _require_possible_script(spec: RunSpec, num_steps: int) -> None:
    for scripted in spec.local_options.preemptions or ():
        if scripted.after_step is not None and scripted.after_step >= num_steps:
            raise SpecError(
                f"local.preemptions: after_step {scripted.after_step} never comes: the run has "
                f"{num_steps} steps.",
                "Preempt earlier, or train longer.",
            )


def _estimate(
    spec: RunSpec,
    offers: tuple[Offer, ...],
    egress: Egress,
    traces: Sequence[ZoneTrace] | None,
) -> Estimate | None:
    """Return what the run takes and costs; None where nothing is known of its work."""
    workload = assumed_workload(spec)
    if workload is None:
        return None
    productive, assumption = workload.productive, workload.assumption
    weather = weather_for(spec.nodes.num_gpus, spec.nodes.count)
    work = _work(spec, egress, productive, _interval(spec, productive, weather))
    hours = timedelta(hours=work_hours(work, weather, RESTART))
    usd_cheapest = _usd(productive, offers[0].usd_per_hour * spec.nodes.count)
    _require_feasible(spec, hours, usd_cheapest, assumption)
    trusted = [one for one in offers if one.doubt is None] or offers
    on_demand = min(one.on_demand_usd_per_hour for one in trusted)
    return Estimate(
        productive=productive,
        work=hours,
        usd_cheapest=usd_cheapest,
        usd_on_demand=_usd(hours + RESTART, on_demand * spec.nodes.count),
        assumption=assumption,
        interval=work.interval,
        weather=weather,
        forecast=_forecast(spec, work, offers, weather, traces),
        is_recorded=traces is not None,
    )


def _usd(time: timedelta, usd_per_hour: Decimal) -> Decimal:
    return (Decimal(time.total_seconds()) / 3600 * usd_per_hour).quantize(Decimal("0.01"))


def _require_feasible(
    spec: RunSpec, hours: timedelta, usd_cheapest: Decimal, assumption: str
) -> None:
    """Refuse what no luck can make true: a node is launched, lost once, and on demand to the end.

    Raises SpecError.
    """
    limits = spec.limits
    num_starts = 1 if limits.market is MarketPreference.SPOT else 2
    needed = hours + num_starts * RESTART
    if limits.deadline is not None and limits.deadline < needed:
        least = math.ceil(needed / timedelta(minutes=1))
        starts = "a start" if num_starts == 1 else "two starts"
        raise SpecError(
            f"limits.deadline: {_show(limits.deadline)} is less than the "
            f"{_show(needed)} that the run needs: {_show(hours)} of training and {starts} of "
            f"{RESTART // timedelta(minutes=1)} min ({assumption}).",
            f"Set limits.deadline to {least}min or more, or take more nodes or fewer steps.",
        )
    if limits.budget_usd < usd_cheapest:
        raise SpecError(
            f"limits.budget_usd: ${limits.budget_usd} is less than the ${usd_cheapest} that the "
            f"training alone costs at the cheapest price on offer ({assumption}).",
            f"Set limits.budget_usd to more than ${usd_cheapest}, or train for fewer steps.",
        )


def _show(time: timedelta) -> str:
    return f"{time / timedelta(hours=1):.1f} h"


def _work(spec: RunSpec, egress: Egress, productive: timedelta, interval: timedelta) -> Work:
    return Work(
        productive=productive,
        interval=interval,
        stall=ASSUMED_STALL,
        num_nodes=spec.nodes.count,
        checkpoint_bytes=egress.checkpoint_bytes or 0,
        num_kept=spec.checkpoints.keep_last,
        home=egress.home,
        places_with_store=frozenset(split_place(place) for place in spec.checkpoints.stores),
    )


def _forecast(
    spec: RunSpec,
    work: Work,
    offers: tuple[Offer, ...],
    weather: Weather,
    traces: Sequence[ZoneTrace] | None,
) -> Forecast:
    limits = Limits(
        budget_usd=spec.limits.budget_usd,
        deadline_at=None,
        market=spec.limits.market,
        stop_margin=STOP_MARGIN,
        restart=RESTART,
        pace=usual_pace(spec.nodes.num_gpus),
    )
    # numpy: 60 ms of every command's start.
    from orchestrator.forecast import forecast
    from orchestrator.simulate.market import make_market

    record = None if traces is None else make_market(traces, spec.nodes.count)
    return forecast(
        work,
        offers,
        limits,
        spec.limits.deadline,
        weather,
        policy=spec.limits.policy.value,
        record=record,
    )


def _interval(spec: RunSpec, productive: timedelta, weather: Weather) -> timedelta:
    """Return the time between saves: the spec's, or Young's, sqrt(2 x stall / losses)."""
    asked = spec.checkpoints.interval
    if asked.seconds is not None:
        return timedelta(seconds=asked.seconds)
    if asked.steps is not None and spec.train.num_steps is not None:
        return productive * (asked.steps / spec.train.num_steps)
    mean_life = timedelta(hours=1 / weather.losses_per_hour)
    return timedelta(seconds=math.sqrt(2 * (ASSUMED_STALL / mean_life)) * mean_life.total_seconds())
