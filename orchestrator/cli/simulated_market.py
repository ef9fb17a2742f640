"""The market of `orchestrate simulate`: recorded traces, or one that is made up of the offers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from orchestrator.simulate.published import Told
    from orchestrator.simulate.terms import Terms
    from orchestrator.simulate.zone_trace import ZoneTrace
    from orchestrator.spec import RunSpec

SYNTHETIC = "synthetic"
# The cheapest ones: on six zones a job of `auto` takes 0.1 s.
_MOST_MADE_UP_ZONES = 6
_HOURS_OF_STARTS = 14 * 24
_PRICE = click.FloatRange(min=0, max=1e6, min_open=True)

traces_option = click.option(
    "--traces",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="One JSON file per zone; a folder is one market. Default: a made-up market.",
)
inverted_option = click.option(
    "--inverted/--as-is",
    "is_inverted",
    default=None,
    help="What 1 means in traces that do not say: a preemption, or a node to be had.",
)
spot_price_option = click.option(
    "--spot-price",
    metavar="USD",
    type=_PRICE,
    help="Spot price per node and hour in traces that have none.",
)
on_demand_price_option = click.option(
    "--on-demand-price",
    metavar="USD",
    type=_PRICE,
    help="On-demand price per node and hour for traces.",
)


def read_market(
    run: RunSpec, traces: Path | None, texts: dict[str, Any], terms: Terms, num_nodes: int
) -> tuple[ZoneTrace, ...]:
    """Return the zones that were recorded, or are made up where there are no traces."""
    recorded = read_recorded(traces, texts, num_nodes)
    if recorded is None:
        return tuple(_make_up(run, terms, texts["seed"], num_nodes))
    return recorded


def read_recorded(
    traces: Path | None, texts: dict[str, Any], num_nodes: int
) -> tuple[ZoneTrace, ...] | None:
    """Return the zones that were recorded, None where there are no traces."""
    from orchestrator.simulate.traces import read_traces, refuse_without_room

    told = _read_told(texts, traces)
    if traces is None:
        return None
    zones = read_traces(traces, told)
    refuse_without_room(zones, num_nodes)
    return tuple(zones)


def _read_told(texts: dict[str, Any], traces: Path | None) -> Told:
    from orchestrator.simulate.published import Told

    told = Told(
        is_inverted=texts["is_inverted"],
        spot_usd_per_hour=texts["spot_price"],
        on_demand_usd_per_hour=texts["on_demand_price"],
    )
    if traces is None and told != Told():
        raise click.UsageError(
            "--spot-price, --on-demand-price, --inverted and --as-is say what --traces do not."
        )
    return told


def _make_up(run: RunSpec, terms: Terms, seed: int, num_nodes: int) -> list[ZoneTrace]:
    """Return a market of the spec's own offers, long enough for two weeks of starts."""
    from orchestrator.offers import MarketPreference, list_offers
    from orchestrator.prices import price_table
    from orchestrator.simulate.synthetic import spot_zones, synthesize

    kind = run.nodes.accelerators
    offers = list_offers(price_table(run, offline=True), kind, run.clouds, MarketPreference.SPOT)
    return synthesize(
        spot_zones(offers)[:_MOST_MADE_UP_ZONES],
        hours=terms.deadline + _HOURS_OF_STARTS,
        seed=seed,
        num_gpus=int(kind.rpartition(":")[2]),
        num_nodes=num_nodes,
    )
