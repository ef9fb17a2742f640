"""Turn conversations into samples: tokens and loss mask, built together, of a bounded length.

A conversation that is too long goes on in further samples, each a whole number of pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from train.data.conversations import Conversation, Dropped
from train.data.template import Piece, opening, render_pair
from train.data.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Tokens, and for each 1 where its prediction is trained, else 0."""

    id: str
    tokens: tuple[int, ...]
    trained: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Adjacent tokens with their mask."""

    tokens: tuple[int, ...]
    trained: tuple[int, ...]

    def __add__(self, other: _Run) -> _Run:
        return _Run(tokens=self.tokens + other.tokens, trained=self.trained + other.trained)

    def __len__(self) -> int:
        return len(self.tokens)


def to_samples(
    conversation: Conversation, tokenizer: ChatTokenizer, max_length: int
) -> tuple[list[Sample], list[Dropped]]:
    """Return the conversation's samples, and what had to be cut or dropped."""
    start = _encode([opening(conversation.system)], tokenizer)
    if tokenizer.bos_id is not None:
        start = _Run(tokens=(tokenizer.bos_id,), trained=(0,)) + start
    runs: list[_Run] = []
    notes: list[Dropped] = []
    current: _Run | None = None
    for number, pair in enumerate(conversation.pairs, start=1):
        if current is not None:
            longer = current + _encode(render_pair(pair, is_first=False), tokenizer)
            if len(longer) <= max_length:
                current = longer
                continue
            runs.append(current)
        current = start + _encode(render_pair(pair, is_first=True), tokenizer)
        if len(current) > max_length:
            why = f"pair {number} has {len(current)} tokens with its prompt, cut to {max_length}"
            notes.append(Dropped(id=conversation.id, why=why))
            runs.append(_cut(current, max_length))
            current = None
    if current is not None:
        runs.append(current)
    samples = []
    for run in runs:
        # The first token is given, never predicted.
        if any(run.trained[1:]):
            samples.append(Sample(id=conversation.id, tokens=run.tokens, trained=run.trained))
        else:
            why = f"a sample of {len(run)} tokens has none to train on after the cut"
            notes.append(Dropped(id=conversation.id, why=why))
    return samples, notes


def _encode(pieces: Iterable[Piece], tokenizer: ChatTokenizer) -> _Run:
    tokens: list[int] = []
    trained: list[int] = []
    for piece in pieces:
        ids: Sequence[int] = tokenizer.encode(piece.text)
        if piece.ends_turn:
            ids = [*ids, tokenizer.eos_id]
        tokens += ids
        trained += [int(piece.is_trained)] * len(ids)
    return _Run(tokens=tuple(tokens), trained=tuple(trained))


def _cut(run: _Run, length: int) -> _Run:
    return _Run(tokens=run.tokens[:length], trained=run.trained[:length])
