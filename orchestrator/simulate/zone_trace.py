"""What is known of one zone over time: nodes to be had, and their price."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
# Of one node and hour, of one zone, and of a tick: what is more is no market, and no number that
# sums of it can hold.
Price = Annotated[float, Field(gt=0, le=1_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Gap = Annotated[float, Field(ge=1, le=1_000_000)]
_Text = Annotated[str, Field(min_length=1, max_length=256)]


class ZoneTrace(BaseModel):
    """What was recorded of one zone."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    schema_version: int = Field(le=SCHEMA_VERSION)
    cloud: _Text
    region: _Text
    zone: _Text
    instance_type: str = ""
    accelerators: str = ""
    gap_seconds: Gap
    available_nodes: list[Count] = Field(min_length=1)
    spot_usd_per_hour: Price | list[Price]
    on_demand_usd_per_hour: Price
    source: str = ""

    @property
    def hours(self) -> float:
        """How long was recorded."""
        return len(self.available_nodes) * self.gap_seconds / 3600


def num_gpus_of(zones: Sequence[ZoneTrace]) -> int | None:
    """Return how many GPUs a node of a market has, None where its records do not say."""
    count = zones[0].accelerators.rpartition(":")[2]
    return int(count) if re.fullmatch("[0-9]{1,4}", count) else None
