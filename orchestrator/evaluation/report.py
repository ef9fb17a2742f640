"""An evaluation's result: every answer and verdict, and what they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.errors import ObjectMissing
from checkpoints.store import ObjectStore
from orchestrator.errors import UnknownRun, unreadable
from orchestrator.evaluation.arithmetic import Estimate, Tally, estimate_score, tally
from orchestrator.evaluation.questions import Question
from orchestrator.evaluation.verdicts import CRITERIA, NoVerdict, Outcome, Preference, Rating

SCHEMA_VERSION = 1
OVERALL = "overall"
_FOLDER = "evaluations/"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Side(_Record):
    """One of the models that answered."""

    name: str
    source: str
    """Where it came from, in words."""
    run: str | None = None
    step: int | None = None


class Judged(_Record):
    """One model's answers to one question; None where it gave none to every turn."""

    answers: tuple[str, ...] | None
    is_cut: bool = False
    """One of them came to the limit of tokens before its end."""
    rating: Rating | None = None
    no_rating: NoVerdict | None = None


class Pair(_Record):
    """The comparison of both models' answers to one question."""

    outcome: Outcome | None = None
    no_verdict: NoVerdict | None = None
    is_flipped: bool = False
    model_first: Preference | None = None
    baseline_first: Preference | None = None


class Item(_Record):
    """One question with all that came of it."""

    question: Question
    model: Judged
    baseline: Judged | None = None
    pair: Pair | None = None


class Category(_Record):
    """The questions of one kind."""

    name: str
    num: int
    model_score: Estimate | None
    baseline_score: Estimate | None
    preference: Tally | None


class Spent(_Record):
    """What judging took in all, and what of it this time; dollars are None without a price."""

    requests: int
    asked_now: int
    prompt_tokens: int
    completion_tokens: int
    usd: Decimal | None
    usd_now: Decimal | None


class Report(_Record):
    """One evaluation."""

    schema_version: int = SCHEMA_VERSION
    evaluation: str
    at: datetime
    model: Side
    baseline: Side | None
    judge: Side | None
    """None where answers were only collected."""
    questions: str
    """Where the questions are from."""
    model_scores: dict[str, Estimate | None]
    """By criterion, and `overall`; 1 to 5."""
    baseline_scores: dict[str, Estimate | None] | None
    preference: Tally | None
    num_flipped: int
    """Pairs in which the judge preferred a place; each is a tie."""
    no_verdicts: dict[NoVerdict, int]
    """Ratings and comparisons without a verdict, by reason."""
    categories: tuple[Category, ...]
    judging: Spent | None
    items: tuple[Item, ...]


def build_report(
    items: Sequence[Item],
    *,
    evaluation: str,
    at: datetime,
    sides: tuple[Side, Side | None, Side | None],
    questions: str,
    judging: Spent | None,
) -> Report:
    """Add everything up; the same items give the same report."""
    model, baseline, judge = sides
    names = list(dict.fromkeys(item.question.category for item in items))
    return Report(
        evaluation=evaluation,
        at=at,
        model=model,
        baseline=baseline,
        judge=judge,
        questions=questions,
        model_scores=_scores([item.model for item in items]),
        baseline_scores=None if baseline is None else _scores(_baselines(items)),
        preference=_tally(items),
        num_flipped=sum(item.pair is not None and item.pair.is_flipped for item in items),
        no_verdicts=dict(Counter(reason for item in items for reason in _reasons(item))),
        categories=tuple(
            _category(name, [item for item in items if item.question.category == name])
            for name in names
        ),
        judging=judging,
        items=tuple(items),
    )


def has_verdicts(report: Report) -> bool:
    """Say whether a judge has said anything that counts."""
    preference = report.preference
    settled = 0 if preference is None else preference.wins + preference.ties + preference.losses
    return settled > 0 or report.model_scores[OVERALL] is not None


def report_key(evaluation: str) -> str:
    """Return the key of a report in the folder that holds evaluations."""
    return f"{_FOLDER}{evaluation}.json"


def read_report(store: ObjectStore, evaluation: str) -> Report:
    """Return a report.

    Raises:
        UnknownRun: there is none of that name.
        RecordUnreadable: it is damaged, or of a newer version.
    """
    try:
        key = report_key(evaluation)
        data = store.get(key).data
    except (ObjectMissing, ValueError) as error:
        raise UnknownRun(
            f"There is no evaluation {evaluation!r}.", "See the run's page, or orchestrate eval."
        ) from error
    try:
        return Report.model_validate_json(data)
    except ValidationError as error:
        raise unreadable(key, data, error, SCHEMA_VERSION) from error


def _category(name: str, items: Sequence[Item]) -> Category:
    return Category(
        name=name,
        num=len(items),
        model_score=_overall([item.model for item in items]),
        baseline_score=_overall(_baselines(items)),
        preference=_tally(items),
    )


def _scores(judged: Sequence[Judged]) -> dict[str, Estimate | None]:
    ratings = [one.rating for one in judged if one.rating is not None]
    scores = {
        name: estimate_score([getattr(rating, name) for rating in ratings]) for name in CRITERIA
    }
    return {**scores, OVERALL: _overall(judged)}


def _overall(judged: Sequence[Judged]) -> Estimate | None:
    return estimate_score([one.rating.mean for one in judged if one.rating is not None])


def _baselines(items: Sequence[Item]) -> list[Judged]:
    return [item.baseline for item in items if item.baseline is not None]


def _tally(items: Sequence[Item]) -> Tally | None:
    pairs = [item.pair for item in items if item.pair is not None]
    if not pairs:
        return None
    return tally([pair.outcome or pair.no_verdict or NoVerdict.MALFORMED for pair in pairs])


def _reasons(item: Item) -> list[NoVerdict]:
    found = [item.model.no_rating]
    found += [] if item.baseline is None else [item.baseline.no_rating]
    found += [] if item.pair is None else [item.pair.no_verdict]
    return [reason for reason in found if reason is not None]
