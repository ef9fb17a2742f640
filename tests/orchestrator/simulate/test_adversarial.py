"""No market makes a policy miss a deadline that was feasible, whatever it pays for that."""

from __future__ import annotations

import pytest

from orchestrator.policy.named import POLICIES
from orchestrator.simulate.adversarial import adversarial_markets
from orchestrator.simulate.job import simulate
from orchestrator.simulate.terms import Observe, Terms

WORK, RECORD_HOURS = 6.0, 24.0
MARKETS = dict(adversarial_markets(RECORD_HOURS))


@pytest.mark.parametrize("observe", Observe)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", MARKETS)
def test_no_deadline_is_missed(name, policy, observe):
    for restart, lost_work in ((0.05, 0.0), (0.2, 0.0), (0.1, 0.4)):
        for spare in (2 * restart, 0.6, 3.0, 12.0):  # the least that is feasible, and more
            for start in (0, 60, 100):
                terms = Terms(
                    work=WORK,
                    deadline=WORK + spare,
                    restart=restart,
                    state_gb=10.0,
                    lost_work=lost_work,
                    failed_launch=1 / 30,
                    observe=observe,
                )
                if start / 12 + terms.deadline <= RECORD_HOURS:
                    ended = simulate(MARKETS[name], start, terms, POLICIES[policy]())
                    assert not ended.is_late, (restart, spare, start)


@pytest.mark.parametrize("policy", ["auto", "skynomad"])
def test_on_demand_bounds_what_a_hopeless_market_costs(policy):
    terms = Terms(work=WORK, deadline=9.0, restart=0.1)
    for name in ("all down", "down for good"):
        ended = simulate(MARKETS[name], 0, terms, POLICIES[policy]())
        assert ended.bill.usd <= 1.05 * 3.0 * (WORK + terms.restart), name
