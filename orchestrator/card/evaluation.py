"""What judges said of a released model, as its card tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate and its 95 % interval."""

    mean: float
    low: float
    high: float

    def show(self, style: str) -> str:
        """Write it as people read it, each number in this style."""
        return f"{self.mean:{style}} ({self.low:{style}} to {self.high:{style}})"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """One evaluation of the released checkpoint by a judge."""

    name: str
    judge: str
    questions: str
    """Where the questions are from."""
    num_questions: int
    score: Interval | None
    """Mean rating, 1 to 5."""
    baseline: str | None = None
    """The model that it was compared with."""
    baseline_score: Interval | None = None
    win_rate: Interval | None = None
    """Share of the questions on which the judge preferred it; a tie counts half."""


_NOT_EVALUATED = (
    "No judge has compared its answers with another model's. `orchestrate eval` does that."
)


def evaluation_section(results: Sequence[EvaluationResult]) -> str:
    """Return the card's section; it says so where there was no evaluation."""
    if not results:
        return f"## Evaluation\n{_NOT_EVALUATED}"
    rows = [
        "## Evaluation",
        "Estimates stand with their 95 % interval; a tie counts half a win.",
        "",
        "| evaluation | questions | judge | score, 1 to 5 | compared with | its score | win rate |",
        "|---|---|---|---|---|---|---|",
        *(_row(one) for one in results),
    ]
    return "\n".join(rows)


def _row(one: EvaluationResult) -> str:
    cells = [
        one.name,
        f"{one.num_questions}, {one.questions}",
        one.judge,
        "-" if one.score is None else one.score.show(".2f"),
        one.baseline or "-",
        "-" if one.baseline_score is None else one.baseline_score.show(".2f"),
        "-" if one.win_rate is None else one.win_rate.show(".0%"),
    ]
    return f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |"
