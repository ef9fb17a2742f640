"""A judge with known preferences: its liking for a place is cancelled, and intervals are honest."""

from __future__ import annotations

import random
import re
from datetime import datetime, timezone

import pytest

from orchestrator.evaluation.arithmetic import estimate_score, tally
from orchestrator.evaluation.endpoint import Reply
from orchestrator.evaluation.judge import compare, rate
from orchestrator.evaluation.questions import Question
from tests.orchestrator.evaluation.stub import preference, rating

NUM_QUESTIONS = 80
NUM_EVALUATIONS = 1_000
FEWEST_COVERED = 930
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
QUESTION = Question(question_id="1", category="all", turns=("Which?",))
SHOWN = re.compile(r"Assistant: (\w+)")


def reply(text):
    return Reply(text=text, is_complete=True, prompt_tokens=1, completion_tokens=1, at=NOW)


class Judge:
    """Sees answers that say how good they are, as "good3"; prefers a place with some chance."""

    def __init__(self, place_bias=0.0, place="first", seed=0):
        self.random = random.Random(seed)
        self.place_bias, self.place = place_bias, place

    def __call__(self, request):
        first, second = SHOWN.findall(request.messages[1].content)
        if self.random.random() < self.place_bias:
            return reply(preference(self.place))
        if first == second:
            return reply(preference("tie"))
        return reply(preference("first" if first > second else "second"))


def evaluate(judge, pairs):
    return tally([compare(judge, QUESTION, (ours,), (theirs,)).outcome for ours, theirs in pairs])


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_judge_that_always_prefers_a_place_favours_nobody(place):
    judge = Judge(place_bias=1.0, place=place)
    found = evaluate(judge, [("good9", "good1")] * 10 + [("good1", "good9")] * 10)
    assert (found.wins, found.ties, found.losses) == (0, 20, 0)
    assert found.win_rate.mean == 0.5


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_judge_that_often_prefers_a_place_pulls_to_a_tie_and_to_no_side(place):
    better, worse = [("good9", "good1")] * 200, [("good1", "good9")] * 200
    judge = Judge(place_bias=0.5, place=place)
    up, down = evaluate(judge, better), evaluate(judge, worse)
    # Both orders say so with the chance that the wrong one is not biased: 1/2.
    assert up.losses == down.wins == 0
    assert up.wins == pytest.approx(100, abs=30)
    assert down.losses == pytest.approx(100, abs=30)


@pytest.mark.parametrize(
    ("wins", "ties", "place_bias"),
    [(0.50, 0.00, 0.0), (0.35, 0.30, 0.3), (0.95, 0.03, 0.0)],
)
def test_95_percent_intervals_hold_the_truth(wins, ties, place_bias):
    """1,000 evaluations of 80 questions that are drawn anew; the truth is what they tend to."""
    generator = random.Random(7)
    answers = {"win": ("good9", "good1"), "tie": ("good5", "good5"), "loss": ("good1", "good9")}
    losses = 1 - wins - ties
    # A pair counts unless the order in which the judge would have to say "second" is overruled; a
    # tie that is overruled in one or both orders stays a tie.
    truth = 0.5 + (1 - place_bias) * (wins - losses) / 2
    covered = 0
    for number in range(NUM_EVALUATIONS):
        judge = Judge(place_bias, seed=number)
        drawn = generator.choices(list(answers), [wins, ties, losses], k=NUM_QUESTIONS)
        rate_ = evaluate(judge, [answers[name] for name in drawn]).win_rate
        covered += rate_.low <= truth <= rate_.high
    assert covered >= FEWEST_COVERED


@pytest.mark.parametrize("weights", [(1, 1, 1, 1, 1), (1, 1, 2, 6, 10), (0, 0, 0, 1, 30)])
def test_intervals_of_scores_hold_the_truth(weights):
    generator = random.Random(11)
    scores = (1, 2, 3, 4, 5)
    truth = sum(score * weight for score, weight in zip(scores, weights, strict=True))
    truth /= sum(weights)
    covered = 0
    for _ in range(NUM_EVALUATIONS):
        found = estimate_score(generator.choices(scores, weights, k=NUM_QUESTIONS))
        covered += found.low <= truth <= found.high
    assert covered >= FEWEST_COVERED


def test_a_rating_goes_through_the_same_parser():
    found = rate(lambda request: reply(rating(coherence=2)), QUESTION, ("good1",))
    assert (found.coherence, found.fluency, found.mean) == (2, 4, 3.5)
