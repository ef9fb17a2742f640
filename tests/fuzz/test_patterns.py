"""No pattern takes the square, or the cube, of a text that was made for it."""

from __future__ import annotations

import time

import pytest

from orchestrator.evaluation.reviews import parse_scores
from orchestrator.evaluation.verdicts import Rating, parse
from orchestrator.redact import redact
from orchestrator.simulate.published import is_published
from train.data.markdown import clean_answer

# The squares of these took minutes.
_MANY = 50_000
_MOST_S = 10.0


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (lambda text: parse(Rating, text), "```\n" + "\n" * _MANY + "x"),
        (lambda text: parse(Rating, text), "```json" + " " * _MANY + "\n```"),
        (lambda text: parse(Rating, text), "<think>" * _MANY),
        (parse_scores, "Scores:" + "\n" * _MANY),
        (parse_scores, "\n" * _MANY + "5"),
        (clean_answer, "```" + " " * _MANY),
        (clean_answer, "```" + "\n" * _MANY + "Copy"),
        (clean_answer, "1 / 2\n" * _MANY),
        (clean_answer, "<div>" + " " * _MANY + "</p>"),
        (redact, "://" + "a:" * _MANY),
        (redact, "token" + " " * _MANY),
        (redact, "-----BEGIN PRIVATE KEY-----" * (_MANY // 27)),
        (redact, "token=" + "1" * _MANY + "x"),
        (lambda text: is_published(text.encode()), "[" * _MANY),
    ],
)
def test_a_text_that_was_made_for_a_pattern_is_read_soon(read, text):
    began = time.monotonic()
    read(text)
    assert time.monotonic() - began < _MOST_S
