"""A conversation as pieces of text with their loss mask: Vicuna's prompt, or the model's own.

Pieces are what a reader of the prompt sees: texts that are tokenized one by one, and special tokens
that only a template can write. A mask is never looked for in tokens: it is the template's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from train.data.conversations import Pair

SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

# Vicuna v1.1 for transformers, which generates at "ASSISTANT:".
VICUNA_CHAT_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}"
    "{% set system = " + repr(SYSTEM_PROMPT) + " %}{% set turns = messages %}"
    "{% endif %}"
    "{{ (bos_token or '') + system + ' ' }}"
    "{% for turn in turns %}"
    "{% if turn['role'] == 'user' %}{{ 'USER: ' + turn['content'] + ' ASSISTANT:' }}"
    "{% else %}{% generation %}{{ ' ' + turn['content'] + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Text that is tokenized by itself, or the spelling of the special token with id `token`.

    `pair` counts question and answer pairs from 0; what comes before them belongs to -1.
    """

    text: str
    is_trained: bool
    pair: int
    token: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Special:
    """A special token's spelling and id."""

    text: str
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlToken:
    """A token that only a template can write; it may take the white space beside it for its own."""

    id: int
    strips_left: bool
    strips_right: bool


class TemplateRefused(Exception):
    """The template cannot write this conversation as it is."""


class Template(Protocol):
    """Writes a conversation as pieces."""

    def pieces(self, system: str | None, pairs: Sequence[Pair]) -> list[Piece]:
        """Return the pieces of a conversation; raises TemplateRefused if it cannot be written."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VicunaTemplate:
    """The Vicuna v1.1 prompt.

    Source: FastChat fastchat/conversation.py, `vicuna_v1.1` (ADD_COLON_TWO, sep " ", sep2 "</s>").
    Roles end in a colon and texts begin with the space after it: generation continues at
    "ASSISTANT:", so the space is the first thing the model has to say.
    """

    bos: Special | None
    eos: Special

    def pieces(self, system: str | None, pairs: Sequence[Pair]) -> list[Piece]:
        """Return the pieces; every answer's text and EOS are trained, all else is given."""
        found = []
        if self.bos is not None:
            found.append(_special(self.bos, is_trained=False, pair=-1))
        opening = SYSTEM_PROMPT if system is None else system
        found.append(Piece(text=opening, is_trained=False, pair=-1))
        for number, pair in enumerate(pairs):
            # Only the first is set off from the opening by a space.
            user = "USER:" if number else " USER:"
            found += [
                Piece(text=user, is_trained=False, pair=number),
                Piece(text=f" {pair.user}", is_trained=False, pair=number),
                Piece(text=" ASSISTANT:", is_trained=False, pair=number),
                Piece(text=f" {pair.assistant}", is_trained=True, pair=number),
                _special(self.eos, is_trained=True, pair=number),
            ]
        return found


def _special(special: Special, *, is_trained: bool, pair: int) -> Piece:
    return Piece(text=special.text, is_trained=is_trained, pair=pair, token=special.id)
