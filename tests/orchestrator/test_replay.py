"""Exact resume: what the comparison of replayed steps says."""

from __future__ import annotations

import math

from orchestrator.replay import Setup, compare_replayed
from tests.orchestrator.histories import measured_step


def test_equal_repeats_are_counted_and_differ_by_nothing():
    measured = [measured_step(1, step, step, loss=1 / step) for step in (1, 2, 3)]
    measured += [measured_step(2, step, 10 + step, loss=1 / step) for step in (2, 3, 4)]
    replay = compare_replayed(measured, {})
    assert (replay.num_steps, replay.max_abs_diff, replay.differing) == (2, 0.0, ())


def test_one_bit_of_difference_shows():
    measured = [
        measured_step(1, 2, 0, loss=1.5),
        measured_step(2, 2, 9, loss=math.nextafter(1.5, 2)),
        measured_step(3, 2, 19, loss=1.5),
    ]
    replay = compare_replayed(measured, {})
    assert replay.differing == (2,)
    assert replay.max_abs_diff == math.ulp(1.5)
    assert replay.num_steps == 2


def test_nothing_replayed_proves_nothing():
    assert compare_replayed([measured_step(1, 1, 0)], {}).max_abs_diff is None


def test_steps_of_another_world_size_are_not_compared():
    pair, quad = (Setup(world_size=size, accelerators="A100:8") for size in (2, 4))
    measured = [
        measured_step(1, 2, 0, loss=1.5),
        measured_step(2, 2, 9, loss=1.5 + 1e-6),
        measured_step(3, 2, 19, loss=1.5),
    ]
    replay = compare_replayed(measured, {1: pair, 2: quad, 3: pair})
    assert (replay.num_steps, replay.max_abs_diff, replay.differing) == (1, 0.0, ())
