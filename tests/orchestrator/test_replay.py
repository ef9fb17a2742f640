"""Exact resume: what the comparison of replayed steps says."""

from __future__ import annotations

import math
from dataclasses import replace

from orchestrator.ledger.measurements import Measured
from orchestrator.replay import compare_replayed
from tests.orchestrator.histories import at, measured_step
from train.spool import Resumed


def test_equal_repeats_are_counted_and_differ_by_nothing():
    measured = [measured_step(1, step, step, loss=1 / step) for step in (1, 2, 3)]
    measured += [measured_step(2, step, 10 + step, loss=1 / step) for step in (2, 3, 4)]
    replay = compare_replayed(measured)
    assert (replay.num_steps, replay.max_abs_diff, replay.differing) == (2, 0.0, ())


def test_one_bit_of_difference_shows():
    measured = [
        measured_step(1, 2, 0, loss=1.5),
        measured_step(2, 2, 9, loss=math.nextafter(1.5, 2)),
        measured_step(3, 2, 19, loss=1.5),
    ]
    replay = compare_replayed(measured)
    assert replay.differing == (2,)
    assert replay.max_abs_diff == math.ulp(1.5)
    assert replay.num_steps == 2


def test_nothing_replayed_proves_nothing():
    assert compare_replayed([measured_step(1, 1, 0)]).max_abs_diff is None


def resumed(attempt, when, numerics):
    record = Resumed(at=at(when), step=0, manifest=None, num_bytes=0, seconds=0, numerics=numerics)
    return Measured(attempt=attempt, record=record)


def test_steps_of_ranks_that_round_otherwise_are_not_compared():
    measured = [
        *(resumed(1, 0, "two ranks"), measured_step(1, 2, 0, loss=1.5)),
        *(resumed(2, 8, "four ranks"), measured_step(2, 2, 9, loss=1.5 + 1e-6)),
        *(resumed(3, 18, "two ranks"), measured_step(3, 2, 19, loss=1.5)),
    ]
    replay = compare_replayed(measured)
    assert (replay.num_steps, replay.max_abs_diff, replay.differing) == (1, 0.0, ())
    assert replay.num_incomparable == 1


def test_a_step_on_another_batch_is_no_replay():
    first = measured_step(1, 2, 0, loss=1.5)
    rolled_back = measured_step(1, 2, 9, loss=1.7)
    other = rolled_back.record.model_copy(update={"batch": 9})
    replay = compare_replayed([first, replace(rolled_back, record=other)])
    assert replay.num_steps == 0
