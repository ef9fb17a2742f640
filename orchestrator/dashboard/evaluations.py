"""The page of one evaluation, and the rows that a run's page has of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.dashboard.charts import Segment, place, stack_segments
from orchestrator.dashboard.formats import NOTHING, write_exact_usd, write_instant, write_share
from orchestrator.dashboard.tables import Column, Table
from orchestrator.evaluation.arithmetic import Estimate, Tally
from orchestrator.evaluation.report import OVERALL, Item, Judged, Report, Side
from orchestrator.evaluation.verdicts import CRITERIA, HIGHEST, LOWEST, Outcome, Preference
from orchestrator.evaluation.wording import show, show_rate
from orchestrator.ledger.facts import ModelEvaluated

_KINDS = {Outcome.WIN: "productive", Outcome.TIE: "waiting", Outcome.LOSS: "lost_work"}
_WORDS = {Outcome.WIN: "better", Outcome.TIE: "as good", Outcome.LOSS: "worse"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBar:
    """One model's mean score with its interval, in percent of the scale."""

    name: str
    kind: str
    text: str
    length: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One criterion, a bar for each model."""

    name: str
    bars: tuple[ScoreBar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRow:
    """How many questions of a kind were won, tied and lost."""

    name: str
    counts: str
    rate: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What one model said, and how it was rated."""

    name: str
    turns: tuple[tuple[str, str], ...]
    """Question and answer, turn by turn; empty where there is no answer."""
    rating: str
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownItem:
    """One question with the answers side by side."""

    title: str
    category: str
    verdict: str
    shown: tuple[Shown, ...]
    orders: tuple[tuple[str, str], ...]
    """What the judge said in each order: who was shown first, and its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPage:
    """One evaluation, ready to lay out."""

    title: str
    facts: tuple[tuple[str, str], ...]
    legend: tuple[tuple[str, str], ...]
    scores: tuple[ScoreRow, ...]
    outcomes: tuple[OutcomeRow, ...]
    categories: Table
    no_verdicts: str
    items: tuple[ShownItem, ...]


def build_evaluation(report: Report) -> EvaluationPage:
    """Return the page's content; the same report gives the same page."""
    against = "" if report.baseline is None else f" against {report.baseline.name}"
    legend = [(report.model.name, "productive")]
    if report.baseline is not None:
        legend.append((report.baseline.name, "restore"))
    return EvaluationPage(
        title=f"{report.model.name}{against}",
        facts=tuple(_facts(report)),
        legend=tuple(legend),
        scores=() if report.judge is None else tuple(_score_rows(report)),
        outcomes=tuple(_outcome_rows(report)),
        categories=categories_table(report),
        no_verdicts=", ".join(f"{num} {why.value}" for why, num in report.no_verdicts.items()),
        items=tuple(_item(item, report) for item in report.items),
    )


def evaluations_table(judged: tuple[ModelEvaluated, ...]) -> Table:
    """Return the evaluations of a run's checkpoints."""
    return Table(
        caption="What a judge said of the run's checkpoints",
        columns=tuple(
            Column(name=name.lstrip("#"), is_number=name.startswith("#"))
            for name in ("Evaluation", "#Step", "#Score", "#Baseline's", "#Win rate", "Against",
                         "#Wins", "#Ties", "#Losses", "#No verdict", "#Judging", "Judge")
        ),
        rows=tuple(_evaluated_row(one) for one in judged),
        empty="No checkpoint was judged yet: orchestrate eval RUN --baseline MODEL --judge MODEL",
    )  # fmt: skip


def categories_table(report: Report) -> Table:
    """Return scores and outcomes by category, for people and programs."""
    has_baseline = report.baseline is not None
    names = ["Category", "#Questions", "#Score"]
    names += ["#Baseline's", "#Wins", "#Ties", "#Losses", "#Win rate"] if has_baseline else []
    rows = []
    for one in report.categories:
        row = [one.name, str(one.num), show(one.model_score)]
        if has_baseline and one.preference is not None:
            tally = one.preference
            row += [show(one.baseline_score), str(tally.wins), str(tally.ties)]
            row += [str(tally.losses), show_rate(tally.win_rate)]
        rows.append(tuple(row))
    return Table(
        caption="By category, with 95 % intervals",
        columns=tuple(
            Column(name=name.lstrip("#"), is_number=name.startswith("#")) for name in names
        ),
        rows=tuple(rows),
        empty="No question was asked.",
    )


def _evaluated_row(one: ModelEvaluated) -> tuple[str, ...]:
    rate = NOTHING if one.win_rate is None else write_share(one.win_rate[0])
    return (
        one.evaluation,
        f"{one.step:,}",
        NOTHING if one.score is None else f"{one.score[0]:.2f}",
        NOTHING if one.baseline_score is None else f"{one.baseline_score[0]:.2f}",
        rate,
        one.baseline or NOTHING,
        str(one.wins),
        str(one.ties),
        str(one.losses),
        str(one.no_verdicts),
        NOTHING if one.usd is None else write_exact_usd(float(one.usd)),
        one.judge,
    )


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    if report.judge is not None:
        yield from _verdict_facts(report)
        yield "Judge", _describe(report.judge)
    yield "Questions", f"{len(report.items)}, {report.questions}"
    yield "Model", _describe(report.model)
    if report.baseline is not None:
        yield "Baseline", _describe(report.baseline)
    if report.judging is not None:
        usd = report.judging.usd
        cost = "price unknown" if usd is None else write_exact_usd(float(usd))
        yield "Judging", f"{report.judging.requests:,} replies, {cost}"
    yield "Made at", f"{write_instant(report.at)} UTC"


def _verdict_facts(report: Report) -> Iterator[tuple[str, str]]:
    preference = report.preference
    if preference is not None:
        yield "Win rate, a tie is half", show_rate(preference.win_rate)
        yield "Wins, ties, losses", f"{preference.wins} / {preference.ties} / {preference.losses}"
        yield "Ties because places flipped", str(report.num_flipped)
    yield "Score, 1 to 5", show(report.model_scores[OVERALL])
    if report.baseline_scores is not None:
        yield "Baseline's score", show(report.baseline_scores[OVERALL])
    yield "No verdict", str(sum(report.no_verdicts.values()))


def _describe(side: Side) -> str:
    return side.name if side.source == side.name else f"{side.name}, {side.source}"


def _score_rows(report: Report) -> Iterator[ScoreRow]:
    for name in (*CRITERIA, OVERALL):
        bars = [_score_bar(report.model.name, "productive", report.model_scores[name])]
        if report.baseline is not None and report.baseline_scores is not None:
            theirs = report.baseline_scores[name]
            bars.append(_score_bar(report.baseline.name, "restore", theirs))
        yield ScoreRow(name=name, bars=tuple(bars))


def _score_bar(name: str, kind: str, estimate: Estimate | None) -> ScoreBar:
    if estimate is None:
        return ScoreBar(name=name, kind=kind, text=NOTHING, length=0.0, low=0.0, high=0.0)
    return ScoreBar(
        name=name,
        kind=kind,
        text=show(estimate),
        length=place(estimate.mean, LOWEST, HIGHEST),
        low=place(estimate.low, LOWEST, HIGHEST),
        high=place(estimate.high, LOWEST, HIGHEST),
    )


def _outcome_rows(report: Report) -> Iterator[OutcomeRow]:
    if report.preference is None:
        return
    yield _outcome_row("all", report.preference)
    for one in report.categories:
        if one.preference is not None:
            yield _outcome_row(one.name, one.preference)


def _outcome_row(name: str, tally: Tally) -> OutcomeRow:
    counts = {Outcome.WIN: tally.wins, Outcome.TIE: tally.ties, Outcome.LOSS: tally.losses}
    return OutcomeRow(
        name=name,
        counts=f"{tally.wins} wins, {tally.ties} ties, {tally.losses} losses",
        rate=show_rate(tally.win_rate),
        segments=stack_segments([(_KINDS[one], float(num)) for one, num in counts.items()]),
    )


def _item(item: Item, report: Report) -> ShownItem:
    sides = [(report.model, item.model)]
    if report.baseline is not None and item.baseline is not None:
        sides.append((report.baseline, item.baseline))
    pair, verdict, orders = item.pair, "", []
    if pair is not None:
        verdict = _WORDS[pair.outcome] if pair.outcome else "no verdict"
        verdict += " (flipped)" if pair.is_flipped else ""
        verdict += f": {pair.no_verdict.value}" if pair.no_verdict else ""
        orders = [
            (f"{first} first: {found.better}", found.explanation)
            for first, found in (("model", pair.model_first), ("baseline", pair.baseline_first))
            if isinstance(found, Preference)
        ]
    return ShownItem(
        title=item.question.turns[0],
        category=item.question.category,
        verdict=verdict,
        shown=tuple(_shown(side, judged, item.question.turns) for side, judged in sides),
        orders=tuple(orders),
    )


def _shown(side: Side, judged: Judged, turns: tuple[str, ...]) -> Shown:
    rating = judged.rating
    if rating is not None:
        words = ", ".join(f"{name} {getattr(rating, name)}" for name in CRITERIA)
    else:
        words = f"no rating: {judged.no_rating.value}" if judged.no_rating else ""
    words = f"cut off at the limit of tokens; {words}".rstrip("; ") if judged.is_cut else words
    return Shown(
        name=side.name,
        turns=tuple(zip(turns, judged.answers, strict=True)) if judged.answers else (),
        rating=words,
        explanation="" if rating is None else rating.explanation,
    )
