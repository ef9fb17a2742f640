"""What the ledger says of the run's preemptions, for the trainer's interval between saves."""

from __future__ import annotations

from orchestrator.ledger.fold import LaunchView, RunState
from orchestrator.offers import Market
from train.config import RunHazard


def run_hazard(state: RunState) -> RunHazard:
    """Return how long spot nodes of this run were up, and how often they were taken.

    Only launches that have ended count; on-demand nodes say nothing of the spot market.
    """
    spot = [launch for launch in state.launches if launch.offer.market is Market.SPOT]
    return RunHazard(
        num_preemptions=sum(1 for launch in spot if _is_lost(launch)),
        exposure_seconds=tuple(
            (launch.ended_at - launch.ready_at).total_seconds()
            for launch in spot
            if launch.ready_at is not None and launch.ended_at is not None
        ),
        time_scale=state.record.spec.time_scale,
    )


def _is_lost(launch: LaunchView) -> bool:
    """Say whether the nodes came up and went, other than by us."""
    return launch.ready_at is not None and launch.is_lost
