"""Which batches are left out: spikes, what is not finite, and what roll-backs skip."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.guard import (
    is_in_history,
    next_batch,
    note_loss,
    to_skip,
    usual_loss,
    why_left_out,
)
from train.state import START

ranges = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 30)).map(lambda pair: (pair[0], sum(pair))),
    max_size=3,
).map(tuple)


def after(*losses):
    progress = START
    for loss in losses:
        progress = note_loss(progress, loss)
    return progress


@pytest.mark.parametrize(
    ("loss", "grad_norm"),
    [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan")), (1.0, float("inf"))],
)
def test_what_is_not_finite_is_left_out_from_the_first_step_on(loss, grad_norm):
    assert why_left_out(START, loss, grad_norm, None) is not None


def test_a_spike_is_one_against_the_losses_so_far_and_only_once_there_are_some():
    assert why_left_out(after(*[2.0] * 19), 100.0, 1.0, 5.0) is None
    progress = after(*[2.0] * 20)
    assert usual_loss(progress) == pytest.approx(2.0)
    assert why_left_out(progress, 9.9, 1.0, 5.0) is None
    assert "5.1 times" in (why_left_out(progress, 10.2, 1.0, 5.0) or "")
    assert why_left_out(progress, 10.2, 1.0, None) is None


@given(number=st.integers(0, 100), skipped=ranges)
def test_the_next_batch_is_the_first_that_is_in_no_range(number, skipped):
    def is_skipped(one):
        return any(first <= one < stop for first, stop in skipped)

    expected = next(one for one in range(number, 1000) if not is_skipped(one))
    assert next_batch(number, skipped) == expected
    # A state stands before a batch: at either end of a range it is of the history that counts.
    assert is_in_history(expected, skipped)


def test_a_roll_back_goes_further_where_the_last_one_did_not_help():
    progress = replace(START, step=100, batch=100)
    assert to_skip(progress, 103, 20) == (80, 103)
    again = replace(progress, batch=110, skipped=((80, 103),))
    assert to_skip(again, 113, 20) == (60, 113)
    later = replace(progress, batch=500, skipped=((80, 103),))
    assert to_skip(later, 503, 20) == (480, 503)
    assert to_skip(replace(START, step=5, batch=5), 8, 20) == (0, 8)
