"""An evaluation as people read it, and the published reviews of 2023 added up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from orchestrator.evaluation.arithmetic import Estimate, tally
from orchestrator.evaluation.meter import Outlook
from orchestrator.evaluation.questions import Question
from orchestrator.evaluation.report import OVERALL, Category, Report
from orchestrator.evaluation.reviews import Review, outcome_for_second, parse_scores
from orchestrator.evaluation.verdicts import CRITERIA, NoVerdict

_NOTHING = "-"


def render(report: Report) -> str:
    """Return what `orchestrate eval` prints."""
    return "\n".join(_lines(report))


def show(estimate: Estimate | None, digits: int = 2) -> str:
    """Write a mean with its 95 % interval."""
    if estimate is None:
        return _NOTHING
    low, high = f"{estimate.low:.{digits}f}", f"{estimate.high:.{digits}f}"
    return f"{estimate.mean:.{digits}f} ({low} to {high})"


def show_rate(estimate: Estimate | None) -> str:
    """Write a win rate in percent with its 95 % interval."""
    if estimate is None:
        return _NOTHING
    return f"{estimate.mean:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"


def describe_outlook(outlook: Outlook) -> str:
    """Say what judging will take before it is asked for."""
    new = outlook.requests - outlook.known
    tokens = f"about {outlook.prompt_tokens + outlook.completion_tokens:,} tokens"
    known = f", {outlook.known:,} more are known" if outlook.known else ""
    return f"Judging: {new:,} requests{known}; {tokens}, {_show_usd(outlook.usd)}."


def review_document(
    reviews: Sequence[Review], questions: Sequence[Question] | None
) -> dict[str, Any]:
    """Return a file of 2023's reviews added up, the second assistant against the first."""
    scores = [parse_scores(review.text) for review in reviews]
    outcomes = [outcome_for_second(one) for one in scores]
    known = {question.question_id: question.category for question in questions or ()}
    by_category: dict[str, list[int]] = {}
    for number, review in enumerate(reviews):
        by_category.setdefault(known.get(review.question_id, "?"), []).append(number)
    pairs = [one for one in scores if not isinstance(one, NoVerdict)]
    told = [review.score for review in reviews if review.score is not None]
    same = [
        review.score == list(one)
        for review, one in zip(reviews, scores, strict=True)
        if review.score is not None and not isinstance(one, NoVerdict)
    ]
    return {
        "schema_version": 1,
        "reviews": len(reviews),
        "scores": {
            "first": {"total": sum(first for first, _ in pairs), "num": len(pairs)},
            "second": {"total": sum(second for _, second in pairs), "num": len(pairs)},
        },
        "second_against_first": _tally_document(outcomes),
        "categories": {
            name: _tally_document([outcomes[number] for number in numbers])
            for name, numbers in by_category.items()
        }
        if known
        else {},
        "scores_in_file": {"num": len(told), "equal": sum(same)},
    }


def render_reviews(document: dict[str, Any]) -> str:
    """Return the added up reviews as people read them."""
    first, second = document["scores"]["first"], document["scores"]["second"]
    lines = [
        f"{document['reviews']} reviews, of these {first['num']} with two scores",
        f"Total of scores: first {first['total']:g}, second {second['total']:g}",
        "The second against the first, shown in one order only:",
        f"  {'all':<16}{_tally_words(document['second_against_first'])}",
    ]
    lines += [f"  {name:<16}{_tally_words(one)}" for name, one in document["categories"].items()]
    told = document["scores_in_file"]
    if told["num"]:
        lines.append(f"Scores that the file itself has: {told['equal']} of {told['num']} equal")
    return "\n".join(lines)


def _lines(report: Report) -> Iterator[str]:
    against = "" if report.baseline is None else f" against {report.baseline.name}"
    judge = "not judged" if report.judge is None else f"judged by {report.judge.name}"
    yield f"{report.model.name}{against}, {judge}"
    yield f"{len(report.items)} questions, {report.questions}"
    if report.judge is None:
        yield "Side by side: --page FILE. Verdicts on them: the same command with --judge."
        return
    yield ""
    yield from _score_lines(report)
    yield from _preference_lines(report)
    yield ""
    yield from _category_lines(report.categories, has_baseline=report.baseline is not None)
    if report.no_verdicts:
        reasons = ", ".join(f"{num} {why.value}" for why, num in report.no_verdicts.items())
        yield ""
        yield f"No verdict: {reasons}."
        yield "  What got no reply is asked again by the same command; all of it with --fresh."
    spent = report.judging
    if spent is not None:
        yield ""
        yield (
            f"Judging took {spent.requests:,} replies, {spent.asked_now:,} of them now; "
            f"{spent.prompt_tokens:,} + {spent.completion_tokens:,} tokens, "
            f"{_show_usd(spent.usd)} in all."
        )


def _score_lines(report: Report) -> Iterator[str]:
    theirs = report.baseline_scores
    names = [report.model.name] + ([] if report.baseline is None else [report.baseline.name])
    yield f"  {'score, 1 to 5':<16}" + "".join(f"{name[:22]:>24}" for name in names)
    for name in (*CRITERIA, OVERALL):
        row = [report.model_scores[name]] + ([] if theirs is None else [theirs[name]])
        yield f"  {name:<16}" + "".join(f"{show(one):>24}" for one in row)


def _preference_lines(report: Report) -> Iterator[str]:
    preference = report.preference
    if preference is None:
        return
    yield ""
    counts = f"{preference.wins} wins, {preference.ties} ties, {preference.losses} losses"
    yield f"Win rate {show_rate(preference.win_rate)}: {counts}"
    if report.num_flipped:
        yield f"  {report.num_flipped} of the ties: the judge preferred a place, whoever was there"


def _category_lines(categories: Sequence[Category], *, has_baseline: bool) -> Iterator[str]:
    more = f"{'baseline':>9}{'wins':>6}{'ties':>6}{'losses':>8}  win rate" if has_baseline else ""
    yield f"  {'category':<16}{'questions':>10}{'score':>7}{more}"
    for one in categories:
        row = f"  {one.name[:16]:<16}{one.num:>10}{_mean(one.model_score):>7}"
        tally_ = one.preference
        if has_baseline and tally_ is not None:
            row += f"{_mean(one.baseline_score):>9}{tally_.wins:>6}{tally_.ties:>6}"
            row += f"{tally_.losses:>8}  {show_rate(tally_.win_rate)}"
        yield row


def _mean(estimate: Estimate | None) -> str:
    return _NOTHING if estimate is None else f"{estimate.mean:.2f}"


def _show_usd(usd: Decimal | None) -> str:
    return "price unknown" if usd is None else f"${usd:.4f}"


def _tally_document(outcomes: Sequence[Any]) -> dict[str, Any]:
    found = tally(outcomes)
    rate = found.win_rate
    return {
        "wins": found.wins,
        "ties": found.ties,
        "losses": found.losses,
        "no_verdicts": found.no_verdicts,
        "win_rate": None if rate is None else rate.mean,
        "ci95": None if rate is None else [rate.low, rate.high],
    }


def _tally_words(one: dict[str, Any]) -> str:
    rate = "-" if one["win_rate"] is None else f"{one['win_rate']:.1%}"
    return f"{one['wins']:>3} wins {one['ties']:>3} ties {one['losses']:>3} losses  {rate}"
