"""What judges said of a released model, as its card tells it."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.ledger.facts import Interval, ModelEvaluated

_NOT_EVALUATED = (
    "No judge has compared its answers with another model's. `orchestrate eval` does that."
)


def evaluation_section(judged: Sequence[ModelEvaluated]) -> str:
    """Return the card's section; it says so where there was no evaluation."""
    if not judged:
        return f"## Evaluation\n{_NOT_EVALUATED}"
    rows = [
        "## Evaluation",
        "Estimates stand with their 95 % interval; a tie counts half a win.",
        "",
        "| evaluation | questions | judge | score, 1 to 5 | compared with | its score | win rate |",
        "|---|---|---|---|---|---|---|",
        *(_row(one) for one in judged),
    ]
    return "\n".join(rows)


def _row(one: ModelEvaluated) -> str:
    cells = [
        one.evaluation,
        f"{one.num_questions}, {one.questions}",
        one.judge,
        _show(one.score, ".2f"),
        one.baseline or "-",
        _show(one.baseline_score, ".2f"),
        _show(one.win_rate, ".0%"),
    ]
    return f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |"


def _show(estimate: Interval | None, style: str) -> str:
    if estimate is None:
        return "-"
    mean, low, high = estimate
    return f"{mean:{style}} ({low:{style}} to {high:{style}})"
