"""Translate traces as others have published them: `{metadata: {gap_seconds}, data}`, a zone a file.

Two formats share those keys, and mean opposite things by `data`:
- skypilot-org/spot-traces (Wu et al., NSDI'24) counts nodes that could be had. Its files say no
  more; zone and accelerators are in their names, the folders above say what it is:
  `availability/1-node/aws-02-15-2023/us-east-1a_v100_1.json`, and `preemption/...` alike.
- The SkyNomad artifact (NSDI'27) says 1 for preempted and 0 for room, with `metadata.price_info`
  in every file, and `prices` for each tick in most: `us-central1-a_h100_16/full.json`.
What a user says goes first. What neither user, file nor path says is an error, never a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from orchestrator.errors import InputError
from orchestrator.simulate.zone_trace import SCHEMA_VERSION, Count, Gap, Price, ZoneTrace

_SPOT_TRACES = re.compile(
    r"/(availability|preemption)/\d+-node/(aws|gcp)-\d\d-\d\d-\d{4}/[^/]+\.json$"
)
# us-east-1a, us-gov-west-1a; us-central1-a, northamerica-northeast1-a.
_AWS_ZONE = r"[a-z]{2}(?:-[a-z]+)+-\d[a-z]"
_GCP_ZONE = r"[a-z]+-[a-z]+\d+-[a-z]"
_NAME = re.compile(rf"(?P<zone>(?P<aws>{_AWS_ZONE})|{_GCP_ZONE})(?:_(?P<device>.+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a user says of traces; None: let them say it themselves. USD per node and hour."""

    is_inverted: bool | None = None
    """1 is a preemption, and not a node to be had."""
    spot_usd_per_hour: float | None = None
    on_demand_usd_per_hour: float | None = None


class _Source(str, Enum):
    SPOT_TRACES = "skypilot-org/spot-traces"
    SKYNOMAD = "SkyNomad artifact"


class _PriceInfo(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    price: Price | None = None
    on_demand_price: Price | None = None
    instance_type: str = ""
    machine_type: str = ""


class _Metadata(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    gap_seconds: Gap
    zone: str = ""
    price_info: _PriceInfo | None = None


class _Published(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    metadata: _Metadata
    data: list[Count] = Field(min_length=1)
    prices: list[Price] | None = None


def is_published(text: bytes) -> bool:
    """Say whether a file has the keys of the published formats, and not of ours."""
    try:
        found = from_json(text)
    except ValueError:
        return False
    return isinstance(found, dict) and "metadata" in found and "schema_version" not in found


def translate(text: bytes, path: Path, told: Told) -> ZoneTrace:
    """Return what a published file says.

    Raises ValidationError if it is broken, and InputError if something is not known.
    """
    published = _Published.model_validate_json(text)
    info = published.metadata.price_info or _PriceInfo()
    name = _name(published, path)
    source = _source(published, path)
    return ZoneTrace(
        schema_version=SCHEMA_VERSION,
        cloud="aws" if name["aws"] else "gcp",
        region=name["zone"][:-1] if name["aws"] else name["zone"].rpartition("-")[0],
        zone=name["zone"],
        instance_type=info.instance_type or info.machine_type,
        # h100_16 of the SkyNomad artifact is 16 launches, and its price one of a machine.
        accelerators="" if info.machine_type else _accelerators(name["device"]),
        gap_seconds=published.metadata.gap_seconds,
        available_nodes=_nodes(published, path, told),
        spot_usd_per_hour=_spot_prices(published, path, told),
        on_demand_usd_per_hour=_known(
            told.on_demand_usd_per_hour or info.on_demand_price, path, "on-demand"
        ),
        source="" if source is None else source.value,
    )


def _source(published: _Published, path: Path) -> _Source | None:
    if published.metadata.price_info is not None:
        return _Source.SKYNOMAD
    in_repository = _SPOT_TRACES.search(path.absolute().as_posix())
    return _Source.SPOT_TRACES if in_repository else None


def _name(published: _Published, path: Path) -> re.Match[str]:
    """Find the zone: what the file says, or else its name, or else the folders above it."""
    whole = path.absolute()
    for text in (published.metadata.zone, whole.stem, *(folder.name for folder in whole.parents)):
        if found := _NAME.fullmatch(text):
            return found
    raise InputError(
        f"{path} is named after no zone of AWS or Google Cloud.",
        "Name it as it was published: us-east-1a_v100_1.json.",
    )


def _accelerators(device: str | None) -> str:
    kind, _, count = (device or "").rpartition("_")
    return f"{kind.upper()}:{count}" if kind and count.isdecimal() else device or ""


def _nodes(published: _Published, path: Path, told: Told) -> list[int]:
    source = _source(published, path)
    if told.is_inverted is None and source is None:
        raise InputError(
            f"{path} does not say whether 1 is a node to be had or a preemption.",
            "Give --as-is if it counts nodes, as skypilot-org/spot-traces does, or --inverted.",
        )
    is_inverted = source is _Source.SKYNOMAD if told.is_inverted is None else told.is_inverted
    if not is_inverted:
        return published.data
    if max(published.data) > 1:
        raise InputError(
            f"{path} has a {max(published.data)} where 1 is to be a preemption, and 0 room.",
            "Give --as-is if it counts nodes.",
        )
    return [1 - value for value in published.data]


def _spot_prices(published: _Published, path: Path, told: Told) -> float | list[float]:
    if told.spot_usd_per_hour is None and published.prices is not None:
        return published.prices
    info = published.metadata.price_info or _PriceInfo()
    return _known(told.spot_usd_per_hour or info.price, path, "spot")


def _known(usd: float | None, path: Path, market: str) -> float:
    if usd is None:
        raise InputError(
            f"{path} has no {market} price.", f"Give --{market}-price, USD per node and hour."
        )
    return usd
