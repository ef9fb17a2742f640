"""The course of an evaluation: answers of both models, then a judge's verdicts on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeAlias, TypeVar

from orchestrator.evaluation.answers import Answering, Answers
from orchestrator.evaluation.endpoint import Request
from orchestrator.evaluation.judge import Ask, compare, first_request, rate
from orchestrator.evaluation.prompts import preference_messages, rating_messages
from orchestrator.evaluation.questions import Question
from orchestrator.evaluation.report import Item, Judged, Pair
from orchestrator.evaluation.verdicts import NoVerdict, Preference, Rating

Advance: TypeAlias = Callable[[], None]
"""Called when a question is done."""
Done = TypeVar("Done")


def collect(
    answering: Answering, questions: Sequence[Question], *, parallel: int, advance: Advance
) -> dict[str, Answers | None]:
    """Return a model's answers by question."""
    tasks = {question.question_id: question for question in questions}
    return dict(_each(tasks, answering, parallel, advance))


def judge(
    ask: Ask,
    questions: Sequence[Question],
    model: dict[str, Answers | None],
    baseline: dict[str, Answers | None] | None,
    *,
    parallel: int,
    advance: Advance,
) -> list[Item]:
    """Return each question with its verdicts, in the order of the questions."""

    def one(question: Question) -> Item:
        key = question.question_id
        theirs = None if baseline is None else baseline[key]
        item = Item(
            question=question,
            model=_rated(ask, question, model[key]),
            baseline=None if baseline is None else _rated(ask, question, theirs),
        )
        if baseline is None:
            return item
        return item.model_copy(update={"pair": _pair(ask, question, model[key], theirs)})

    tasks = {question.question_id: question for question in questions}
    done = dict(_each(tasks, one, parallel, advance))
    return [done[key] for key in tasks]


def unjudged(
    questions: Sequence[Question],
    model: dict[str, Answers | None],
    baseline: dict[str, Answers | None] | None,
) -> list[Item]:
    """Return each question with its answers alone."""
    return [
        Item(
            question=question,
            model=_unrated(model[question.question_id]),
            baseline=None if baseline is None else _unrated(baseline[question.question_id]),
        )
        for question in questions
    ]


def requests(
    questions: Sequence[Question],
    model: dict[str, Answers | None],
    baseline: dict[str, Answers | None] | None,
) -> Iterator[Request]:
    """Return what the judge will be asked, if each reply is a verdict at once."""
    for question in questions:
        ours = model[question.question_id]
        theirs = None if baseline is None else baseline[question.question_id]
        for answers in (ours, theirs):
            if answers is not None:
                yield first_request(Rating, rating_messages(question, answers.turns))
        if ours is not None and theirs is not None:
            yield first_request(Preference, preference_messages(question, ours.turns, theirs.turns))
            yield first_request(Preference, preference_messages(question, theirs.turns, ours.turns))


def _unrated(answers: Answers | None) -> Judged:
    if answers is None:
        return Judged(answers=None)
    return Judged(answers=answers.turns, is_cut=answers.is_cut)


def _rated(ask: Ask, question: Question, answers: Answers | None) -> Judged:
    judged = _unrated(answers)
    if answers is None:
        return judged.model_copy(update={"no_rating": NoVerdict.NO_ANSWER})
    rating = rate(ask, question, answers.turns)
    kind = "no_rating" if isinstance(rating, NoVerdict) else "rating"
    return judged.model_copy(update={kind: rating})


def _pair(ask: Ask, question: Question, ours: Answers | None, theirs: Answers | None) -> Pair:
    if ours is None or theirs is None:
        return Pair(no_verdict=NoVerdict.NO_ANSWER)
    return compare(ask, question, ours.turns, theirs.turns)


def _each(
    tasks: dict[str, Question],
    work: Callable[[Question], Done],
    parallel: int,
    advance: Advance,
) -> Iterator[tuple[str, Done]]:
    """Yield what `work` made of each question, as it is done; the first error ends all."""
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="evaluate")
    try:
        running = {pool.submit(work, question): key for key, question in tasks.items()}
        for future in as_completed(running):
            yield running[future], future.result()
            advance()
    finally:
        # What is under way is waited for, and kept; what has not begun is not begun.
        pool.shutdown(cancel_futures=True)
