"""Policies by name."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.policy.auto import Auto
from orchestrator.policy.published import Greedy, OnDemand, UniformProgress
from orchestrator.policy.sight import Policy, PolicyName
from orchestrator.policy.skynomad import SkyNomad

POLICIES: dict[str, Callable[[], Policy]] = {
    PolicyName.ON_DEMAND.value: OnDemand,
    PolicyName.GREEDY.value: Greedy,
    PolicyName.UNIFORM_PROGRESS.value: UniformProgress,
    PolicyName.SKYNOMAD.value: SkyNomad,
    PolicyName.AUTO.value: Auto,
}


def make_policy(name: str) -> Policy:
    """Return a policy for one run; raises KeyError for a name that none has."""
    return POLICIES[name]()
