"""Read recorded markets: a folder of JSON files, one per zone.

`{schema_version, cloud, region, zone, instance_type, accelerators, gap_seconds, available_nodes,
spot_usd_per_hour, on_demand_usd_per_hour, source, note}`: how many nodes could be had in each tick
of `gap_seconds`, and the price of one, a number or one per tick.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from orchestrator.errors import InputError
from orchestrator.simulate.zone_trace import ZoneTrace


def read_traces(folder: Path) -> list[ZoneTrace]:
    """Return the zones of a folder, by file name.

    Raises InputError, with the file and what is wrong in it.
    """
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not paths:
        raise InputError(
            f"{folder} holds no traces.",
            "Give a folder of JSON files, one per zone, with --traces.",
        )
    zones = [_read(path) for path in paths]
    kinds = {zone.accelerators for zone in zones}
    if len(kinds) > 1:
        raise InputError(
            f"{folder} mixes {', '.join(sorted(kinds))}: one folder is one market.",
            "Give each kind of node a folder of its own.",
        )
    names = [(zone.cloud, zone.region, zone.zone) for zone in zones]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{folder} has {'/'.join(name)} twice.", "Remove one of the files.")
    return zones


def _read(path: Path) -> ZoneTrace:
    try:
        trace = ZoneTrace.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
        raise InputError(
            f"{path} is no trace: {why}.", "See docs/policy.md for the format."
        ) from error
    prices = trace.spot_usd_per_hour
    if isinstance(prices, list) and len(prices) != len(trace.available_nodes):
        raise InputError(
            f"{path} has {len(prices)} spot prices for {len(trace.available_nodes)} ticks.",
            "Give one price, or one for each tick.",
        )
    return trace
