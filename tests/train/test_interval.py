"""When saves are due: the formula, what it learns from, and what it is worth; and notices."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.config import Interval, RunHazard, TrainConfig
from train.interval import (
    NoticePlan,
    SaveClock,
    expected_preemptions,
    on_notice,
    preemptions_per_hour,
    young_interval_s,
)

HOUR = 3600.0
AUTO = Interval()


def clock(interval=AUTO, *, num_nodes=1, **hazard):
    return SaveClock(interval, RunHazard(**hazard), num_nodes, now_s=0.0)


@pytest.mark.parametrize(("age_h", "minutes"), [(0.1, 4.4), (10.0, 16.5)])
def test_published_examples_of_a_15_s_save_come_out(age_h, minutes):
    interval_s = young_interval_s(15.0, preemptions_per_hour(age_h))
    assert interval_s / 60 == pytest.approx(minutes, abs=0.05)


def test_expected_preemptions_add_up_the_hazard():
    assert expected_preemptions(0.0) == 0.0
    assert expected_preemptions(2.0) == pytest.approx(1.54 / 3 + 0.77 * 2 / 3 + 0.32)
    assert expected_preemptions(48.0) - expected_preemptions(24.0) == pytest.approx(0.03 * 24)


def test_fixed_intervals_count_from_the_begin_of_the_last_save():
    save_clock = clock(Interval(seconds=300.0))
    assert not save_clock.is_time(299.0)
    assert save_clock.is_time(300.0)
    save_clock.note_begun(310.0)
    assert not save_clock.is_time(609.0)
    assert save_clock.is_time(610.0)


def test_step_intervals_ignore_time():
    save_clock = clock(Interval(steps=5))
    assert not save_clock.is_time(1e9)
    assert [step for step in range(1, 12) if save_clock.is_step(step)] == [5, 10]


def test_the_first_save_comes_early_and_the_next_as_the_measured_cost_says():
    save_clock = clock()
    assert not save_clock.is_time(50.0)
    assert save_clock.is_time(75.0)
    save_clock.note_begun(75.0)
    save_clock.note_stall(15.0)
    save_clock.note_durable(20.0)
    assert save_clock.interval_s(75.0) == pytest.approx(4.4 * 60, rel=0.02)


def test_a_long_first_stall_does_not_stretch_the_interval_for_long():
    save_clock = clock()
    save_clock.note_stall(6.0)
    before_s = save_clock.interval_s(0.0)
    save_clock.note_stall(0.5)
    assert save_clock.interval_s(0.0) == pytest.approx(before_s * math.sqrt(0.5 / 6.0))


def test_intervals_grow_with_the_node_s_age_up_to_half_an_hour():
    save_clock = clock()
    save_clock.note_stall(10.0)
    ages_h = (0.1, 0.5, 2.0, 5.0, 10.0)
    intervals = [save_clock.interval_s(age_h * HOUR) for age_h in ages_h]
    assert intervals == sorted(set(intervals))
    assert intervals[-1] < 1800.0
    assert save_clock.interval_s(200 * HOUR) == 1800.0


def test_one_save_is_durable_before_the_next_is_due():
    save_clock = clock()
    save_clock.note_stall(0.1)
    for durable_s in (700.0, 900.0, 800.0):
        save_clock.note_durable(durable_s)
    assert save_clock.durable_s == 800.0
    assert save_clock.interval_s(0.0) == 800.0
    save_clock.note_durable(4000.0)
    save_clock.note_durable(5000.0)
    assert save_clock.interval_s(0.0) == 900.0


def test_slower_steps_beside_a_save_are_part_of_its_cost():
    save_clock = clock()
    save_clock.note_stall(1.0)
    save_clock.note_durable(30.0)
    for seconds in (2.0, 2.0, 9.0):  # one of them was slow for another reason
        save_clock.note_step(seconds, is_saving=False)
    assert save_clock.cost_s == 1.0
    for _ in range(3):
        save_clock.note_step(2.2, is_saving=True)
    assert save_clock.cost_s == pytest.approx(1.0 + 0.1 * 30.0)


def test_a_save_shorter_than_a_step_slows_the_whole_step():
    save_clock = clock()
    save_clock.note_stall(1.0)
    save_clock.note_durable(3.0)
    save_clock.note_step(10.0, is_saving=False)
    save_clock.note_step(12.0, is_saving=True)
    assert save_clock.cost_s == pytest.approx(3.0)


def test_saves_that_seem_to_cost_nothing_do_not_follow_each_other_at_once():
    save_clock = clock()
    save_clock.note_stall(0.0)
    save_clock.note_durable(0.01)
    save_clock.note_step(2.0, is_saving=False)
    save_clock.note_step(1.9, is_saving=True)
    assert save_clock.interval_s(0.0) > 20.0


def test_a_failed_save_is_tried_again_an_interval_later():
    save_clock = clock(Interval(seconds=300.0))
    save_clock.note_begun(300.0)
    save_clock.note_failed(450.0)
    assert not save_clock.is_time(700.0)
    assert save_clock.is_time(750.0)


def test_a_run_that_is_preempted_more_than_the_table_says_saves_more_often():
    lives = (HOUR,) * 8
    expected = 8 * expected_preemptions(1.0)
    level = clock(num_preemptions=24, exposure_seconds=lives).preemptions_per_hour(0.0) / 1.54
    assert level == pytest.approx((4 + 24) / (4 + expected))
    calm = clock(num_preemptions=0, exposure_seconds=lives).preemptions_per_hour(0.0)
    assert calm < 1.54 < 1.54 * level


def test_nothing_seen_is_the_table_itself_and_surviving_lowers_it():
    save_clock = clock()
    assert save_clock.preemptions_per_hour(0.0) == 1.54
    survived = expected_preemptions(2.0)
    hazard = save_clock.preemptions_per_hour(2 * HOUR)
    assert hazard == pytest.approx(0.32 * 4 / (4 + survived))


def test_more_nodes_are_lost_more_often():
    assert clock(num_nodes=8).preemptions_per_hour(0.0) == pytest.approx(8 * 1.54)


def test_a_simulated_market_s_hours_are_those_of_its_own_clock():
    fast = clock(time_scale=60.0, num_preemptions=2, exposure_seconds=(60.0, 120.0))
    real = clock(num_preemptions=2, exposure_seconds=(HOUR, 2 * HOUR))
    for age_h in (0.0, 0.5, 5.0):
        wall = fast.preemptions_per_hour(age_h * 60)
        assert wall == pytest.approx(60 * real.preemptions_per_hour(age_h * HOUR))


def test_a_later_attempt_s_configuration_carries_the_hazard(tmp_path):
    hazard = {"num_preemptions": 2, "exposure_seconds": [600.0, 30.5]}
    config = TrainConfig.model_validate(
        {
            **{"run": "r", "attempt": 3, "store": "memory://x", "num_steps": 5},
            **{"model": {"base": "m"}, "train": {"num_steps": 5}, "hazard": hazard},
            **{"inputs_dir": tmp_path, "spool_dir": tmp_path, "notice_file": tmp_path / "n"},
        }
    )
    again = TrainConfig.model_validate_json(config.model_dump_json())
    assert again.hazard == RunHazard(num_preemptions=2, exposure_seconds=(600.0, 30.5))


# What saving is worth, on lives drawn from the published hazard.

STEP_S = 20.0


def draw_life_s(dice, level):
    """Draw the age at which a node is lost, whose hazard is `level` x the table."""
    threshold, low, high = dice.expovariate(1.0) / level, 0.0, 4000.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_preemptions(middle) < threshold else (low, middle)
    return low * HOUR


def lost_s(interval, lives, *, stall_s, durable_s):
    """Train through `lives` of one run; return the seconds that stalls and rework took."""
    lost, seen = 0.0, []
    for life_s in lives:
        hazard = RunHazard(num_preemptions=len(seen), exposure_seconds=tuple(seen))
        save_clock = SaveClock(interval, hazard, 1, 0.0)
        now_s = unsaved_s = 0.0
        pending = None  # (durable at, what would then be unsaved had it been there at the begin)
        while now_s < life_s:
            now_s += STEP_S
            unsaved_s += STEP_S
            if pending is not None and now_s >= pending[0]:
                unsaved_s -= pending[1]
                pending = None
                save_clock.note_durable(durable_s)
            if pending is None and save_clock.is_time(now_s):
                save_clock.note_begun(now_s)
                save_clock.note_stall(stall_s)
                pending = (now_s + durable_s, unsaved_s)
                now_s += stall_s
                lost += stall_s
        lost += unsaved_s
        seen.append(life_s)
    return lost


# The run's own level x the table, and two saves as ours are; the last is the published example.
@pytest.mark.parametrize(
    ("level", "stall_s", "durable_s"),
    [
        *[(level, 0.5, 5.0) for level in (0.5, 1.0, 2.0)],
        *[(level, 3.0, 30.0) for level in (0.5, 1.0, 2.0)],
        (1.0, 15.0, 60.0),
    ],
)
def test_auto_loses_less_time_than_5_or_30_minutes(level, stall_s, durable_s):
    dice = random.Random(1)
    runs = [[draw_life_s(dice, level) for _ in range(6)] for _ in range(20)]

    def total(interval):
        costs = {"stall_s": stall_s, "durable_s": durable_s}
        return sum(lost_s(interval, lives, **costs) for lives in runs)

    auto = total(AUTO)
    assert auto < total(Interval(seconds=300.0))
    assert auto < total(Interval(seconds=1800.0))


# Notices.


@pytest.mark.parametrize(
    ("left_s", "durable_s", "in_flight_s", "has_new_steps", "plan"),
    [
        # nothing in flight: start only with a margin to spare, and only for new steps
        (120.0, 30.0, None, True, (False, True)),
        (120.0, 30.0, None, False, (False, False)),
        (40.0, 30.0, None, True, (False, False)),
        (0.0, 30.0, None, True, (False, False)),
        # one in flight: wait for it without a margin, and start another if that fits as well
        (25.0, 30.0, 10.0, True, (True, False)),
        (120.0, 30.0, 10.0, True, (True, True)),
        (120.0, 30.0, 10.0, False, (True, False)),
        (60.0, 30.0, 10.0, True, (True, False)),
        (15.0, 30.0, 10.0, True, (False, False)),
        # one that is late already is given a little longer
        (10.0, 30.0, 45.0, False, (True, False)),
        (5.0, 30.0, 45.0, False, (False, False)),
        # nothing is known: try
        (30.0, None, None, True, (False, True)),
        (30.0, None, 5.0, True, (True, True)),
        (30.0, None, None, False, (False, False)),
    ],
)
def test_on_a_notice_what_fits_is_saved(left_s, durable_s, in_flight_s, has_new_steps, plan):
    finish, start = plan
    assert on_notice(
        left_s=left_s, durable_s=durable_s, in_flight_s=in_flight_s, has_new_steps=has_new_steps
    ) == NoticePlan(finish=finish, start=start)


@given(
    left_s=st.floats(0, 1000),
    more_s=st.floats(0, 1000),
    durable_s=st.floats(0, 300),
    in_flight_s=st.none() | st.floats(0, 600),
    has_new_steps=st.booleans(),
)
def test_more_time_never_means_that_less_is_saved(
    left_s, more_s, durable_s, in_flight_s, has_new_steps
):
    def plan(seconds):
        return on_notice(
            left_s=seconds,
            durable_s=durable_s,
            in_flight_s=in_flight_s,
            has_new_steps=has_new_steps,
        )

    short, long = plan(left_s), plan(left_s + more_s)
    assert long.finish >= short.finish
    assert long.start >= short.start
    assert short.finish or in_flight_s is None or not short.start  # never past one in flight


@pytest.mark.parametrize(
    ("left_s", "elapsed_s", "is_enough"),
    [(50.0, 0.0, True), (46.9, 0.0, False), (46.9, 5.0, True), (31.0, 99.0, False)],
)
def test_a_noticed_step_is_finished_if_it_and_a_save_fit_with_a_margin(
    left_s, elapsed_s, is_enough
):
    saves = clock()
    for seconds in (9.0, 10.0, 11.0):
        saves.note_step(seconds, is_saving=False)
    assert not saves.has_time_for_step(1e9, 0.0)  # it never saved: nobody knows how long that is
    saves.note_durable(20.0)
    assert saves.has_time_for_step(left_s, elapsed_s) == is_enough
