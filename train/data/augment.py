"""Add conversations whose questions were put in other words by a model; answers stay as they are.

Only questions, for the loss is on the answers: the model in training learns to say what is there,
and would take over the words and the mistakes of the endpoint's model, which may also forbid it.
Other words of a question widen what is understood and cost no answer its quality.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from train.data.cleaning import Progress, to_line
from train.data.conversations import Conversation, Pair, parse_item
from train.data.endpoint import Endpoint
from train.data.rules import normalised

PROMPT_VERSION = 1
# Requests at a time: what public endpoints bear without a 429 for each.
_CONCURRENCY = 8
# Another length says that the question was answered, or summed up, not put in other words.
_LEAST, _MOST = 0.3, 3.0
# Nothing to say in other words, or not a question but text to work on.
_SHORTEST, _LONGEST = 15, 4000
_CODE = "```"


class Method(str, Enum):
    """How a question gets other words."""

    PARAPHRASE = "paraphrase"
    BACK_TRANSLATION = "back-translation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What is added, by which model, to which share of the conversations."""

    method: Method
    model: str
    share: float
    pivot_language: str


def augment_file(
    source: Path, output: BinaryIO, plan: Augmentation, endpoint: Endpoint, progress: Progress
) -> int:
    """Copy `source`, each chosen conversation followed by its variant; return how many were added.

    Raises EndpointFailed; what was answered so far is in the endpoint's cache.
    """
    num_added = num_bytes = 0
    with source.open("rb") as file, ThreadPoolExecutor(_CONCURRENCY) as pool:
        waiting: deque[tuple[bytes, Future[bytes | None] | None]] = deque()

        def written(least: int) -> Iterator[bool]:
            while len(waiting) > least:
                line, future = waiting.popleft()
                variant = None if future is None else future.result()
                output.write(line)
                output.write(variant or b"")
                yield variant is not None

        try:
            for number, line in enumerate(file):
                item = json.loads(line)
                is_chosen = _fraction(item["id"]) < plan.share
                future = pool.submit(_variant, item, plan, endpoint) if is_chosen else None
                waiting.append((line, future))
                num_added += sum(written(2 * _CONCURRENCY))
                num_bytes += len(line)
                progress(num_bytes, number)
            num_added += sum(written(0))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return num_added


def _fraction(name: str) -> float:
    """Return a number from 0 to 1 that is the conversation's own, whatever the others are."""
    return int.from_bytes(sha256(name.encode()).digest()[:8], "big") / 2**64


def _variant(item: dict[str, object], plan: Augmentation, endpoint: Endpoint) -> bytes | None:
    """Return the line of the variant; None where no question got other words."""
    name, turns = parse_item(item, 0, "the cleaned conversation")
    system = turns[0].text if turns[0].role == "system" else None
    texts = [turn.text for turn in turns[system is not None :]]
    questions = [_reworded(text, plan, endpoint) for text in texts[::2]]
    if not any(questions):
        return None
    pairs = tuple(
        Pair(user=question or text, assistant=answer)
        for question, text, answer in zip(questions, texts[::2], texts[1::2], strict=True)
    )
    provenance = {
        "augmented_from": name,
        "by": plan.method.value,
        "model": plan.model,
        "prompt_version": PROMPT_VERSION,
    }
    if plan.method is Method.BACK_TRANSLATION:
        provenance["pivot_language"] = plan.pivot_language
    variant = Conversation(id=f"{name}-{plan.method.value}", system=system, pairs=pairs)
    return to_line(variant, provenance=provenance)


def _reworded(text: str, plan: Augmentation, endpoint: Endpoint) -> str | None:
    if not _SHORTEST <= len(text) <= _LONGEST or _CODE in text:
        return None
    said = text
    for instruction in _instructions(plan):
        answer = endpoint.ask(instruction, said)
        if not answer:
            return None
        said = answer
    if normalised(said) == normalised(text) or not _LEAST <= len(said) / len(text) <= _MOST:
        return None
    return said


def _instructions(plan: Augmentation) -> tuple[str, ...]:
    """Return what is asked, one after the other; raise PROMPT_VERSION with every change."""
    rule = (
        "Do not answer it. Keep names, numbers, code and quotations as they are. "
        "Reply with the text only."
    )
    if plan.method is Method.PARAPHRASE:
        return (f"Put the user's message in other words, in its own language. {rule}",)
    pivot = plan.pivot_language
    return (
        f"Translate the user's message into {pivot}. {rule}",
        f"Translate the user's message from {pivot} into English. {rule}",
    )
