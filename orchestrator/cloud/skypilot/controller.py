"""Which machine SkyPilot's jobs controller is, and what it costs."""

from __future__ import annotations

from sky.jobs import utils

from orchestrator.agent.whereabouts import find_whereabouts
from orchestrator.catalog import on_demand_price
from orchestrator.cloud.skypilot.conductor import Machine


def find_machine() -> Machine | None:
    """Return the machine that this process runs on; None where it was not started for jobs.

    In consolidation mode that is the API server's, which is there without any run. A controller
    is bought on demand.
    """
    if utils.is_consolidation_mode():
        return None
    found = find_whereabouts()
    if found is None:
        return None
    return Machine(
        cloud=found.cloud,
        region=found.region,
        instance_type=found.instance_type,
        usd_per_hour=on_demand_price(found.cloud, found.instance_type, found.region),
    )
