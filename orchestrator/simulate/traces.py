"""Read recorded markets: a folder of JSON files, one per zone.

`{schema_version, cloud, region, zone, instance_type, accelerators, gap_seconds, available_nodes,
spot_usd_per_hour, on_demand_usd_per_hour, source, note}`: how many nodes could be had in each tick
of `gap_seconds`, and the price of one, a number or one per tick. Or as others have published them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from checkpoints.regular_files import read_regular
from orchestrator.errors import InputError
from orchestrator.simulate.published import Told, is_published, translate
from orchestrator.simulate.zone_trace import ZoneTrace

_ALL_TOLD_BY_FILES = Told()
# A year of minutes with its prices has 6 MB.
_MOST_BYTES = 64 << 20


def read_traces(folder: Path, told: Told = _ALL_TOLD_BY_FILES) -> list[ZoneTrace]:
    """Return the zones of a folder, by file name: `*.json`, or else `*/full.json`.

    Raises InputError, with the file and what is wrong in it.
    """
    paths = sorted(folder.glob("*.json")) or sorted(folder.glob("*/full.json"))
    if not paths:
        raise InputError(
            f"{folder} holds no traces.",
            "Give a folder of JSON files, one per zone, with --traces.",
        )
    zones = [_read(path, told) for path in paths]
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


def refuse_without_room(zones: Sequence[ZoneTrace], num_nodes: int) -> None:
    """Raise InputError if no zone ever has room for so many nodes: all would be on demand."""
    most = max(max(zone.available_nodes) for zone in zones)
    if most < num_nodes:
        raise InputError(
            f"The traces know of {most} nodes in a zone at most, the job needs {num_nodes}.",
            f"Give --nodes {most}, or other traces." if most else "Give other traces.",
        )


def _read(path: Path, told: Told) -> ZoneTrace:
    try:
        text = read_regular(path, _MOST_BYTES)
        if is_published(text):
            trace = translate(text, path, told)
        else:
            trace = ZoneTrace.model_validate_json(text)
            _refuse(told, path)
    except (OSError, ValidationError) as error:
        why = str(getattr(error, "strerror", None) or error)
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


def _refuse(told: Told, path: Path) -> None:
    if told != _ALL_TOLD_BY_FILES:
        raise InputError(
            f"{path} says itself what its numbers and prices are.",
            "Leave out --spot-price, --on-demand-price, --inverted and --as-is.",
        )
