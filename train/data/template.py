"""The Vicuna v1.1 prompt, once as pieces with their loss mask and once as a chat template.

Source: FastChat fastchat/conversation.py, `vicuna_v1.1` (ADD_COLON_TWO, sep " ", sep2 "</s>").
Roles end in a colon and texts begin with the space after it: generation continues at "ASSISTANT:",
so the space is the first thing the model has to say.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.data.conversations import Pair

SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}"
    "{% set system = " + repr(SYSTEM_PROMPT) + " %}{% set turns = messages %}"
    "{% endif %}"
    "{{ bos_token + system + ' ' }}"
    "{% for turn in turns %}"
    "{% if turn['role'] == 'user' %}{{ 'USER: ' + turn['content'] + ' ASSISTANT:' }}"
    "{% else %}{% generation %}{{ ' ' + turn['content'] + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Text that is tokenized by itself; EOS follows where `ends_turn`."""

    text: str
    is_trained: bool
    ends_turn: bool = False


def opening(system: str | None) -> Piece:
    """Return what every sample begins with, after BOS."""
    return Piece(text=SYSTEM_PROMPT if system is None else system, is_trained=False)


def render_pair(pair: Pair, *, is_first: bool) -> tuple[Piece, ...]:
    """Return a pair's pieces; only the first of a sample is set off from the opening by a space."""
    return (
        Piece(text=" USER:" if is_first else "USER:", is_trained=False),
        Piece(text=f" {pair.user}", is_trained=False),
        Piece(text=" ASSISTANT:", is_trained=False),
        Piece(text=f" {pair.assistant}", is_trained=True, ends_turn=True),
    )
