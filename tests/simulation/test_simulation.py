"""A few seeds at every change; CI runs 500, and `python -m tests.simulation --seeds 10000` more."""

from __future__ import annotations

import pytest

from tests.simulation.world import simulate


@pytest.mark.parametrize("seed", range(12))
def test_no_invariant_breaks_whatever_fails(seed):
    outcome = simulate(seed)
    assert not outcome.violations, "\n".join([*outcome.history, *outcome.violations])


def test_a_seed_has_one_history():
    first, second = simulate(7), simulate(7)
    assert first.history == second.history
    assert len(first.history) > 100
