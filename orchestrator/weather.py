"""What is assumed of nodes before any was seen: how often they are lost, and fail."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Pooled over the public traces of Wu et al., "Can't Be Late", NSDI'24, and of SkyNomad (arXiv
# 2601.06520). Machines of 8 V100s: 1.09 losses per hour up; 16 H100s at once: 0.86. Single V100s
# and single H100s: 0.30. None of them has A100s.
# Failures: 6.5 per 1000 days of an 8-GPU node (Kokolis et al., HPCA'25).
_FAILURES_PER_HOUR = 6.5e-3 / 24
_WHOLE_MACHINE_GPUS = 8
# 4 V100 nodes together are lost 1.4 times as often as one of them (the same traces).
_GANG_EXPONENT = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What is assumed of nodes that are up."""

    losses_per_hour: float
    """Of a spot node, to the cloud."""
    failures_per_hour: float
    """Of a node of any kind, by itself."""

    @property
    def pace(self) -> float:
        """How often they are lost, in losses of single-GPU nodes."""
        return self.losses_per_hour / SMALLER_NODES.losses_per_hour


WHOLE_MACHINES = Weather(losses_per_hour=1.0, failures_per_hour=_FAILURES_PER_HOUR)
SMALLER_NODES = Weather(losses_per_hour=0.3, failures_per_hour=_FAILURES_PER_HOUR)


def weather_for(num_gpus: int, num_nodes: int) -> Weather:
    """Return what is assumed of nodes of `num_gpus` GPUs, `num_nodes` of them at a time."""
    base = WHOLE_MACHINES if num_gpus >= _WHOLE_MACHINE_GPUS else SMALLER_NODES
    return replace(
        base,
        losses_per_hour=base.losses_per_hour * num_nodes**_GANG_EXPONENT,
        failures_per_hour=base.failures_per_hour * num_nodes,
    )


def usual_pace(num_gpus: int) -> float:
    """Return how often policies begin to believe that nodes are lost, in losses of single GPUs.

    Whatever their number: that gangs begin with more made starts of minutes dearer than it saved.
    """
    return weather_for(num_gpus, 1).pace
