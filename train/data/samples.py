"""Turn conversations into samples: tokens and loss mask, built together, of a bounded length.

A conversation that is too long goes on in further samples, each a whole number of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.data.conversations import Conversation, Dropped, Pair
from train.data.template import Piece, Template, TemplateRefused
from train.data.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Tokens int32[S], and uint8[S]: 1 where a token's prediction is trained, else 0."""

    id: str
    tokens: NDArray[np.int32]
    trained: NDArray[np.uint8]

    @property
    def num_trained(self) -> int:
        """Return how many predictions are trained; the first token is given, never predicted."""
        return int(self.trained[1:].sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoded:
    """Tokens and mask of some pairs; `ends[n]` is where pair n ends, `opening` where 0 begins."""

    tokens: list[int]
    trained: list[int]
    opening: int
    ends: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """What turns conversations into samples of at most `max_length` tokens."""

    tokenizer: ChatTokenizer
    template: Template
    max_length: int

    def to_samples(self, conversation: Conversation) -> tuple[list[Sample], list[Dropped]]:
        """Return the conversation's samples, and what had to be cut or dropped."""
        samples: list[Sample] = []
        notes: list[Dropped] = []
        try:
            for encoded, first in self._groups(conversation.system, conversation.pairs):
                length = len(encoded.tokens)
                if length > self.max_length:
                    why = f"pair {first + 1} has {length} tokens with its prompt"
                    notes.append(
                        Dropped(id=conversation.id, why=f"{why}, cut to {self.max_length}")
                    )
                sample = Sample(
                    id=conversation.id,
                    tokens=np.array(encoded.tokens[: self.max_length], dtype=np.int32),
                    trained=np.array(encoded.trained[: self.max_length], dtype=np.uint8),
                )
                if sample.num_trained:
                    samples.append(sample)
                else:
                    why = f"a sample of {len(sample.tokens)} tokens has none to train on"
                    notes.append(Dropped(id=conversation.id, why=why))
        except TemplateRefused as error:
            return [], [Dropped(id=conversation.id, why=str(error))]
        return samples, notes

    def split(self, conversation: Conversation) -> list[tuple[Pair, ...]]:
        """Return the pairs of each sample that the conversation becomes.

        Raises TemplateRefused if the template cannot write it.
        """
        pairs = conversation.pairs
        firsts = [first for _, first in self._groups(conversation.system, pairs)]
        bounds = zip(firsts, [*firsts[1:], len(pairs)], strict=True)
        return [pairs[start:stop] for start, stop in bounds]

    def pieces(self, conversation: Conversation) -> list[Piece]:
        """Return the whole conversation, one piece per token, however long it is.

        Raises TemplateRefused if the template cannot write it.
        """
        found = []
        before = None
        for piece in self.template.pieces(conversation.system, conversation.pairs):
            goes_on = self.tokenizer.goes_on(before)
            before = piece if piece.text else before
            if piece.token is not None:
                found.append(piece)
                continue
            parts = zip(
                self.tokenizer.encode(piece.text, goes_on=goes_on),
                self.tokenizer.split(piece.text, goes_on=goes_on),
                strict=True,
            )
            found += [
                Piece(text=text, is_trained=piece.is_trained, pair=piece.pair, token=token)
                for token, text in parts
            ]
        return found

    def _groups(self, system: str | None, pairs: Sequence[Pair]) -> Iterator[tuple[_Encoded, int]]:
        """Yield as many pairs at a time as fit, and the number of their first; one at least."""
        whole = self._encode(system, pairs)
        if len(whole.tokens) <= self.max_length or len(pairs) == 1:
            yield whole, 0
            return
        first = 0
        while first < len(pairs):
            start = whole.ends[first - 1] if first else whole.opening
            room = self.max_length - whole.opening + start
            count = max(1, sum(end <= room for end in whole.ends[first:]))
            encoded = self._encode(system, pairs[first : first + count])
            # The beginning of a sample may be longer than that of a later turn.
            while len(encoded.tokens) > self.max_length and count > 1:
                count -= 1
                encoded = self._encode(system, pairs[first : first + count])
            yield encoded, first
            first += count

    def _encode(self, system: str | None, pairs: Sequence[Pair]) -> _Encoded:
        tokens: list[int] = []
        trained: list[int] = []
        ends = [0] * len(pairs)
        opening = 0
        before = None
        for piece in self.template.pieces(system, pairs):
            if piece.token is None:
                goes_on = self.tokenizer.goes_on(before)
                ids = self.tokenizer.encode(piece.text, goes_on=goes_on)
            else:
                ids = [piece.token]
            before = piece if piece.text else before
            tokens += ids
            trained += [int(piece.is_trained)] * len(ids)
            if piece.pair < 0:
                opening = len(tokens)
            else:
                ends[piece.pair] = len(tokens)
        return _Encoded(tokens=tokens, trained=trained, opening=opening, ends=ends)
