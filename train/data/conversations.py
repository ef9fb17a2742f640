"""Read ShareGPT conversations (JSON or JSON lines) and decide which turns can be trained on.

A file of another shape is an error; a conversation with the wrong content is dropped and reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.data.json_items import EXAMPLE, read_items
from train.errors import DataInvalid

_USER_ROLES = frozenset({"human", "user"})
_ASSISTANT_ROLES = frozenset({"gpt", "assistant", "chatgpt", "bing", "bard"})
_SYSTEM_ROLE = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A question and its answer."""

    user: str
    assistant: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Question and answer pairs in their order; `system` is None where the file gives no prompt."""

    id: str
    system: str | None
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A conversation, or a part of one, that is not trained on."""

    id: str
    why: str
    is_whole: bool = False
    """Nothing of it is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What somebody said; roles are user, assistant, or what the file calls others."""

    role: str
    text: str


def read_conversations(path: Path) -> tuple[list[Conversation], list[Dropped]]:
    """Return the conversations that can be trained on, and all that was left out.

    Raises DataInvalid when the file is missing, is not ShareGPT, or nothing in it can be trained.
    """
    conversations: list[Conversation] = []
    dropped: list[Dropped] = []
    for where, index, item in read_items(path):
        conversation, notes = _to_conversation(*parse_item(item, index, where))
        dropped += notes
        if conversation is not None:
            conversations.append(conversation)
    if not conversations:
        reasons = sorted({note.why for note in dropped})
        raise DataInvalid(
            f"{path} has no conversation with an assistant turn to train on"
            + (f" ({'; '.join(reasons[:3])})." if reasons else " (it is empty)."),
            f"Give ShareGPT conversations: {EXAMPLE}",
        )
    return conversations, dropped


def parse_item(item: object, index: int, where: str) -> tuple[str, list[Turn]]:
    """Return a conversation's id and turns; raises DataInvalid where it is none."""
    turns = item.get("conversations") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(turns, list):
        raise DataInvalid(
            f"{where} is not a conversation: it needs a list named conversations.",
            f"Give ShareGPT conversations: {EXAMPLE}",
        )
    identity = item.get("id")
    name = f"item-{index + 1}" if identity is None else str(identity)
    return name, [_parse_turn(turn, number, where) for number, turn in enumerate(turns, start=1)]


def _parse_turn(turn: object, number: int, where: str) -> Turn:
    if isinstance(turn, dict):
        speaker, value = turn.get("from"), turn.get("value")
        if isinstance(speaker, str) and isinstance(value, str):
            return Turn(role=_role(speaker), text=_without_lone_surrogates(value))
    raise DataInvalid(
        f"{where}, turn {number} needs the texts from and value.",
        f"Give ShareGPT conversations: {EXAMPLE}",
    )


def _role(speaker: str) -> str:
    if speaker in _USER_ROLES:
        return "user"
    return "assistant" if speaker in _ASSISTANT_ROLES else speaker


def _without_lone_surrogates(text: str) -> str:
    # JSON can spell half of a surrogate pair, which no UTF-8 tokenizer accepts.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _to_conversation(name: str, turns: list[Turn]) -> tuple[Conversation | None, list[Dropped]]:
    notes: list[Dropped] = []
    system = None
    if turns and turns[0].role == _SYSTEM_ROLE:
        system, turns = turns[0].text, turns[1:]
    if not any(turn.role == "assistant" for turn in turns):
        return None, [Dropped(id=name, why="no assistant turn", is_whole=True)]
    num_leading = _count_leading(turns, "assistant")
    if num_leading:
        notes.append(Dropped(id=name, why=f"{num_leading} leading assistant turns removed"))
        turns = turns[num_leading:]
    if turns and turns[-1].role == "user":
        notes.append(Dropped(id=name, why="unanswered last user turn removed"))
        turns = turns[:-1]
    problem = _problem(turns)
    if problem is not None:
        return None, [*notes, Dropped(id=name, why=problem, is_whole=True)]
    pairs = tuple(
        Pair(user=user.text, assistant=assistant.text)
        for user, assistant in zip(turns[::2], turns[1::2], strict=True)
    )
    return Conversation(id=name, system=system, pairs=pairs), notes


def _count_leading(turns: Iterable[Turn], role: str) -> int:
    count = 0
    for turn in turns:
        if turn.role != role:
            break
        count += 1
    return count


def _problem(turns: Sequence[Turn]) -> str | None:
    if not turns:
        return "no answered user turn"
    for number, turn in enumerate(turns, start=1):
        expected = "user" if number % 2 else "assistant"
        if turn.role != expected:
            return f"wrong role order: {turn.role!r} where {expected} is due (turn {number})"
        if not turn.text.strip():
            return f"turn {number} is empty"
    return None
