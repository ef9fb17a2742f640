"""Split a conversation that is longer than the context into parts of whole pairs; none is lost."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from train.data.conversations import Conversation, Pair
from train.data.template import opening, render_pair
from train.data.tokenizer import ChatTokenizer, load_tokenizer
from train.errors import DataInvalid


def split_lengths(
    lengths: Sequence[int], opening_length: int, max_length: int
) -> list[tuple[int, int]]:
    """Return the first pair and the one after the last of each part, as long as parts may be.

    Every part begins with the opening again. A pair that is too long alone is a part of its own,
    which the trainer cuts and reports.
    """
    parts: list[tuple[int, int]] = []
    start, used = 0, opening_length
    for number, length in enumerate(lengths):
        if number > start and used + length > max_length:
            parts.append((start, number))
            start, used = number, opening_length
        used += length
    if lengths:
        parts.append((start, len(lengths)))
    return parts


def split_conversation(
    conversation: Conversation, folder: Path, max_length: int
) -> list[Conversation]:
    """Return the conversation, or its parts as ID_0, ID_1, ...; raises DataInvalid."""
    tokenizer = tokenizer_in(folder)
    lengths = [_pair_length(pair, tokenizer) for pair in conversation.pairs]
    parts = split_lengths(lengths, _opening_length(conversation.system, tokenizer), max_length)
    if len(parts) == 1:
        return [conversation]
    return [
        replace(conversation, id=f"{conversation.id}_{number}", pairs=conversation.pairs[start:end])
        for number, (start, end) in enumerate(parts)
    ]


@functools.cache
def tokenizer_in(folder: Path) -> ChatTokenizer:
    """Return the tokenizer of a model folder; raises DataInvalid where there is none."""
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise DataInvalid(
            f"{folder} has no tokenizer.json.", "Give the model's folder with --tokenizer."
        )
    return tokenizer


def _pair_length(pair: Pair, tokenizer: ChatTokenizer) -> int:
    """Return the tokens of a pair where it takes most: it is not known yet if it comes first."""
    return max(
        sum(len(tokenizer.encode(piece.text)) + piece.ends_turn for piece in pieces)
        for pieces in (render_pair(pair, is_first=True), render_pair(pair, is_first=False))
    )


def _opening_length(system: str | None, tokenizer: ChatTokenizer) -> int:
    bos = tokenizer.bos_id is not None
    return bos + len(tokenizer.encode(opening(system).text))
