"""Verdicts are parsed strictly, settled over both orders, and added up."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evaluation.arithmetic import estimate_score, tally
from orchestrator.evaluation.reviews import outcome_for_second, parse_scores
from orchestrator.evaluation.verdicts import (
    CRITERIA,
    NoVerdict,
    Outcome,
    Preference,
    Rating,
    is_flipped,
    parse,
    schema_of,
    settle,
)

GOOD = {"explanation": "It answers.", **dict.fromkeys(CRITERIA, 3)}


def seen(better):
    return Preference(explanation="", better=better)


def test_a_verdict_is_the_whole_reply_or_one_block_of_code():
    text = json.dumps(GOOD)
    assert parse(Rating, text) == Rating(**GOOD)
    assert parse(Rating, f"\n```json\n{text}\n```\n") == Rating(**GOOD)
    assert parse(Rating, f"<think>Is it {{1}}?</think>\n{text}") == Rating(**GOOD)
    assert parse(Preference, '{"explanation": "", "better": "tie"}') == seen("tie")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I would say the first one.",
        "null",
        "[3, 3, 3, 3]",
        "Here it is: " + json.dumps(GOOD),
        json.dumps(GOOD) + json.dumps(GOOD),
        json.dumps(GOOD)[:-1],
        json.dumps({**GOOD, "fluency": 6}),
        json.dumps({**GOOD, "fluency": 0}),
        json.dumps({**GOOD, "fluency": 4.5}),
        json.dumps({**GOOD, "fluency": 4.0}),
        json.dumps({**GOOD, "fluency": "4"}),
        json.dumps({**GOOD, "fluency": True}),
        json.dumps({**GOOD, "fluency": None}),
        json.dumps({**GOOD, "sure": True}),
        json.dumps({name: 3 for name in CRITERIA}),
        json.dumps({"explanation": "", "better": "first"}),
        json.dumps(GOOD)[:-1] + ', "fluency": 5}',
        json.dumps({**GOOD, "fluency": float("nan")}),
        "[" * 100_000,
        json.dumps(GOOD) + "<think>After all, no.</think>",
    ],
)
def test_what_is_not_clearly_a_rating_is_none(text):
    assert parse(Rating, text) is None


@pytest.mark.parametrize("better", ["First", "A", "both", "", None, 1, ["first"]])
def test_what_is_not_clearly_a_preference_is_none(better):
    assert parse(Preference, json.dumps({"explanation": "", "better": better})) is None


@given(st.text())
def test_no_text_that_is_no_verdict_becomes_one(text):
    assert parse(Rating, text) is None
    assert parse(Preference, text) is None
    scores = parse_scores(text)
    assert scores is NoVerdict.MALFORMED or all(0 <= one <= 10 for one in scores)


def test_the_schema_asks_for_just_what_the_parser_takes():
    assert set(schema_of(Rating)["properties"]) == set(Rating.model_fields)
    assert set(schema_of(Preference)["properties"]) == set(Preference.model_fields)
    assert schema_of(Rating)["properties"]["fluency"]["enum"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("model_first", "baseline_first", "outcome", "flips"),
    [
        ("first", "second", Outcome.WIN, False),
        ("second", "first", Outcome.LOSS, False),
        ("first", "first", Outcome.TIE, True),
        ("second", "second", Outcome.TIE, True),
        ("tie", "tie", Outcome.TIE, False),
        ("tie", "second", Outcome.TIE, False),
        ("first", "tie", Outcome.TIE, False),
        ("second", "tie", Outcome.TIE, False),
        ("tie", "first", Outcome.TIE, False),
    ],
)
def test_only_a_verdict_that_stays_when_places_are_exchanged_counts(
    model_first, baseline_first, outcome, flips
):
    assert settle(seen(model_first), seen(baseline_first)) is outcome
    assert is_flipped(seen(model_first), seen(baseline_first)) is flips


def test_no_verdicts_are_counted_and_in_no_rate():
    found = tally([Outcome.WIN, Outcome.TIE, NoVerdict.TIMED_OUT, Outcome.LOSS, NoVerdict.REFUSED])
    assert (found.wins, found.ties, found.losses, found.no_verdicts) == (1, 1, 1, 2)
    assert found.win_rate.mean == 0.5
    assert found.win_rate.num == 3
    assert tally([NoVerdict.MALFORMED]).win_rate is None


@given(st.lists(st.sampled_from(Outcome), min_size=1, max_size=90), st.randoms())
def test_a_rate_is_within_its_interval_and_does_not_depend_on_order(outcomes, random):
    found = tally(outcomes)
    rate = found.win_rate
    assert 0 <= rate.low <= rate.mean <= rate.high <= 1
    assert rate.low < rate.high
    assert rate.mean == pytest.approx((found.wins + found.ties / 2) / len(outcomes))
    shuffled = list(outcomes)
    random.shuffle(shuffled)
    assert tally(shuffled).win_rate.mean == pytest.approx(rate.mean)


def test_the_best_score_of_all_is_not_certain():
    best = estimate_score([5.0] * 20)
    assert best.mean == best.high == 5
    assert 4.4 < best.low < 5
    assert estimate_score([]) is None


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("9 8.5\nBoth are good.", (9.0, 8.5)),
        ("7, 10\nThe second is better.", (7.0, 10.0)),
        ("8 8", (8.0, 8.0)),
        ("I reckon first.\n\nScores:\nAssistant 1: 10\nAssistant 2: 4\n\nSo it is.", (10.0, 4.0)),
    ],
)
def test_reviews_of_2023_are_read_in_both_of_their_forms(text, scores):
    assert parse_scores(text) == scores


@pytest.mark.parametrize(
    "text",
    [
        "Both are good.",
        "9\n8",
        "9 8 7\nThree scores for two.",
        "11 9\nOut of ten.",
        "-1 9\nNegative.",
        "9/10 8/10\nFractions.",
        "Scores:\nAssistant 1: 9\nAssistant 2: 8\n\nScores:\nAssistant 1: 1\nAssistant 2: 2\n",
    ],
)
def test_reviews_of_2023_without_two_clear_scores_have_no_verdict(text):
    assert parse_scores(text) is NoVerdict.MALFORMED
    assert outcome_for_second(parse_scores(text)) is NoVerdict.MALFORMED


def test_the_second_assistant_of_a_review_is_the_model():
    assert outcome_for_second((8.0, 9.0)) is Outcome.WIN
    assert outcome_for_second((9.0, 8.0)) is Outcome.LOSS
    assert outcome_for_second((9.0, 9.0)) is Outcome.TIE
