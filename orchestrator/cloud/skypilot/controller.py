"""Which machine SkyPilot's jobs controller is, and what it costs."""

from __future__ import annotations

from pathlib import Path

from sky.jobs import constants

from orchestrator.agent.whereabouts import find_whereabouts
from orchestrator.catalog import on_demand_price
from orchestrator.cloud.skypilot.conductor import Machine


def find_machine() -> Machine | None:
    """Return the machine that this process runs on; None where it was not started for jobs.

    In consolidation mode that is the API server's, which is there without any run. The file is what
    SkyPilot goes by; its own `is_consolidation_mode()` is always true in a controller (0.14.1:
    `OVERRIDE_CONSOLIDATION_MODE` in sky/utils/controller_utils.py).
    """
    if Path(constants.JOBS_CONSOLIDATION_RELOADED_SIGNAL_FILE).expanduser().exists():
        return None
    found = find_whereabouts()
    if found is None:
        return None
    return Machine(
        cloud=found.cloud,
        region=found.region,
        instance_type=found.instance_type,
        # SkyPilot asks for no spot machine to watch over spot machines.
        usd_per_hour=on_demand_price(found.cloud, found.instance_type, found.region),
    )
