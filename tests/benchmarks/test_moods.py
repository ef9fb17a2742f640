"""The law of zones that a forecast is measured by is fitted, and read off a record."""

import numpy as np
import pytest

from benchmarks.moods import Moods, Series, go_on, improve, present_states

TICK = 1 / 6
MOODS = Moods(
    losses=np.array([0.05, 2.0]),
    returns=np.array([3.0, 0.2]),
    turns=np.array([[-0.05, 0.05], [0.1, -0.1]]),
)


def test_odds_of_an_hour_are_those_of_its_halves():
    half, hour = MOODS.after(0.5), MOODS.after(1.0)
    assert np.allclose(half @ half, hour)
    assert np.allclose(hour.sum(axis=1), 1.0)
    assert np.allclose(MOODS.in_the_long_run() @ hour, MOODS.in_the_long_run())


def test_a_zone_that_has_had_room_for_long_is_steady():
    room = np.ones(200, dtype=np.bool_)
    assert present_states(room, TICK, MOODS)[0] > 0.95
    assert present_states(~room, TICK, MOODS)[3] > 0.95


def test_ways_to_go_on_have_the_odds_of_the_present():
    odds = np.array([0.25, 0.25, 0.5, 0.0])
    room = go_on(odds, TICK, 1, 400, np.random.default_rng(0), MOODS)
    assert room.mean() == pytest.approx((odds @ MOODS.after(TICK))[:2].sum(), abs=0.05)


def test_each_step_of_the_fit_fits_better():
    dice = np.random.default_rng(1)
    (room,) = go_on(MOODS.in_the_long_run(), TICK, 3_000, 1, dice, MOODS)
    moods = Moods(
        losses=np.array([0.2, 1.0]),
        returns=np.array([1.0, 0.5]),
        turns=np.array([[-0.1, 0.1], [0.1, -0.1]]),
    )
    fits = []
    for _ in range(15):
        moods, fit = improve(moods, [Series(TICK, room)])
        fits.append(fit)
    assert fits == sorted(fits)
    assert moods.losses[0] < 0.2 < 1.0 < moods.losses[1]
