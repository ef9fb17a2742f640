"""A judge: asks for verdicts until one is well formed, a bounded number of times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from orchestrator.evaluation.endpoint import Answered, Message, NoReply, Reply, Request
from orchestrator.evaluation.prompts import preference_messages, rating_messages
from orchestrator.evaluation.questions import Question
from orchestrator.evaluation.report import Pair
from orchestrator.evaluation.verdicts import (
    NoVerdict,
    Preference,
    Rating,
    Verdict,
    is_flipped,
    parse,
    schema_of,
    settle,
)

Ask: TypeAlias = Callable[[Request], Answered | NoVerdict]
"""Returns the reply to a request, or why there is none; a budget may have been used up."""

# Room for some sentences and the verdict, and for what a model that reasons writes first; a reply
# that is cut off is no verdict.
MAX_TOKENS = 2048
# A judge that sends something else three times will not come to its senses at the fourth.
_TRIES = 3
_REASONS = {
    NoReply.TIMED_OUT: NoVerdict.TIMED_OUT,
    NoReply.RATE_LIMITED: NoVerdict.RATE_LIMITED,
    NoReply.UNREACHABLE: NoVerdict.UNREACHABLE,
    NoReply.REFUSED: NoVerdict.REFUSED,
}


def rate(ask: Ask, question: Question, answers: Sequence[str]) -> Rating | NoVerdict:
    """Return the rating of one model's answers to a question."""
    return _judge(ask, Rating, rating_messages(question, answers))


def compare(ask: Ask, question: Question, model: Sequence[str], baseline: Sequence[str]) -> Pair:
    """Return the judge's preference between two models' answers, seen in both orders.

    There is no outcome where one of the orders has no verdict.
    """
    first = _judge(ask, Preference, preference_messages(question, model, baseline))
    if isinstance(first, NoVerdict):
        return Pair(no_verdict=first)  # the other order would be paid for in vain
    second = _judge(ask, Preference, preference_messages(question, baseline, model))
    if isinstance(second, NoVerdict):
        return Pair(no_verdict=second, model_first=first)
    return Pair(
        outcome=settle(first, second),
        is_flipped=is_flipped(first, second),
        model_first=first,
        baseline_first=second,
    )


def first_request(kind: type[Verdict], messages: tuple[Message, ...]) -> Request:
    """Return what is asked first; its cost can be told before it is asked."""
    return Request(messages=messages, max_tokens=MAX_TOKENS, json_schema=schema_of(kind))


def _judge(ask: Ask, kind: type[Verdict], messages: tuple[Message, ...]) -> Verdict | NoVerdict:
    request = first_request(kind, messages)
    why = NoVerdict.MALFORMED
    for number in range(_TRIES):
        # Another seed is another request: the same one would be answered from what is kept.
        reply = ask(request.model_copy(update={"seed": number}))
        if isinstance(reply, NoVerdict):
            return reply
        if not isinstance(reply, Reply):
            return _REASONS[reply]
        if reply.is_refused:
            return NoVerdict.REFUSED
        verdict = parse(kind, reply.text) if reply.is_complete else None
        if verdict is not None:
            return verdict
        why = NoVerdict.MALFORMED if reply.is_complete else NoVerdict.CUT_OFF
    return why
