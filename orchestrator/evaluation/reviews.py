"""Reviews as GPT-4 wrote them for Vicuna in 2023: two scores of 1 to 10 in prose, one order only.

Files are lm-sys/vicuna-blog-eval's (eval/table/review). They are read, never asked for: one order
does not tell the better answer from the better place.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import InputError
from orchestrator.evaluation.questions import read_lines
from orchestrator.evaluation.verdicts import NoVerdict, Outcome

_NUMBER = r"(\d+(?:\.\d+)?)"
# "9 8.5" or "9, 8.5" on the first line, as the prompt asked for.
_FIRST_LINE = re.compile(rf"\A\s*{_NUMBER}(?:[ \t]*,[ \t]*|[ \t]+){_NUMBER}[ \t]*(?:\n|\Z)")
# The mathematics reviewer reckons first and gives its scores at the end.
_SCORES = re.compile(rf"^Scores:\s*\nAssistant 1: {_NUMBER}\s*\nAssistant 2: {_NUMBER}\s*$", re.M)
_HIGHEST = 10.0


class Review(BaseModel):
    """One line of a review file."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)
    question_id: str
    text: str
    score: list[float] | None = None
    """What the file itself has taken from the text."""


def read_reviews(path: Path) -> tuple[Review, ...]:
    """Return a file's reviews; raise InputError where a line is none."""
    reviews = []
    for number, line in read_lines(path):
        try:
            reviews.append(Review.model_validate_json(line))
        except ValidationError as error:
            raise InputError(
                f"{path} line {number} is no review: it needs question_id and text.",
                "Give a file as lm-sys/vicuna-blog-eval has them.",
            ) from error
    return tuple(reviews)


def parse_scores(text: str) -> tuple[float, float] | NoVerdict:
    """Return the scores of the first and the second assistant."""
    found = _FIRST_LINE.match(text)
    if found is None:
        at_end = _SCORES.findall(text)
        if len(at_end) != 1:
            return NoVerdict.MALFORMED
        scores = float(at_end[0][0]), float(at_end[0][1])
    else:
        scores = float(found[1]), float(found[2])
    return scores if max(scores) <= _HIGHEST else NoVerdict.MALFORMED


def outcome_for_second(scores: tuple[float, float] | NoVerdict) -> Outcome | NoVerdict:
    """Return how the second assistant fared against the first, the baseline."""
    if isinstance(scores, NoVerdict):
        return scores
    first, second = scores
    if first == second:
        return Outcome.TIE
    return Outcome.WIN if second > first else Outcome.LOSS
