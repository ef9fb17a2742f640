"""Read ShareGPT conversations (JSON or JSON lines) and decide which turns can be trained on.

A file of another shape is an error; a conversation with the wrong content is dropped and reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.errors import DataInvalid

_USER_ROLES = frozenset({"human", "user"})
_ASSISTANT_ROLES = frozenset({"gpt", "assistant", "chatgpt", "bing", "bard"})
_SYSTEM_ROLE = "system"
_EXAMPLE = '{"id": "1", "conversations": [{"from": "human", "value": "Hi"}, ...]}'


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    role: str
    text: str


def read_conversations(path: Path) -> tuple[list[Conversation], list[Dropped]]:
    """Return the conversations that can be trained on, and all that was left out.

    Raises DataInvalid when the file is missing, is not ShareGPT, or nothing in it can be trained.
    """
    conversations: list[Conversation] = []
    dropped: list[Dropped] = []
    for where, index, item in _items(path):
        conversation, notes = _to_conversation(*_parse_item(item, index, where))
        dropped += notes
        if conversation is not None:
            conversations.append(conversation)
    if not conversations:
        reasons = sorted({note.why for note in dropped})
        raise DataInvalid(
            f"{path} has no conversation with an assistant turn to train on"
            + (f" ({'; '.join(reasons[:3])})." if reasons else " (it is empty)."),
            f"Give ShareGPT conversations: {_EXAMPLE}",
        )
    return conversations, dropped


def _items(path: Path) -> Iterator[tuple[str, int, object]]:
    text = _read_text(path)
    if text.lstrip().startswith("["):
        whole = _parse_json(text, str(path))
        assert isinstance(whole, list)
        yield from ((f"{path}, item {index + 1}", index, item) for index, item in enumerate(whole))
        return
    # Not splitlines(): JSON strings may hold U+2028, which is no line end to JSON.
    lines = (line for line in enumerate(text.split("\n"), start=1) if line[1].strip())
    for index, (number, line) in enumerate(lines):
        where = f"{path}, line {number}"
        yield where, index, _parse_json(line, where)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataInvalid(
            f"{path} cannot be read: {error.strerror}.", "Give the path of a .json or .jsonl file."
        ) from error
    except UnicodeDecodeError as error:
        raise DataInvalid(
            f"{path} is not UTF-8 text (byte {error.start}).", "Convert it to UTF-8."
        ) from error


def _parse_json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataInvalid(
            f"{where} is not JSON: {error}.", f"Give ShareGPT conversations: {_EXAMPLE}"
        ) from error


def _parse_item(item: object, index: int, where: str) -> tuple[str, list[_Turn]]:
    turns = item.get("conversations") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(turns, list):
        raise DataInvalid(
            f"{where} is not a conversation: it needs a list named conversations.",
            f"Give ShareGPT conversations: {_EXAMPLE}",
        )
    identity = item.get("id")
    name = f"item-{index + 1}" if identity is None else str(identity)
    return name, [_parse_turn(turn, number, where) for number, turn in enumerate(turns, start=1)]


def _parse_turn(turn: object, number: int, where: str) -> _Turn:
    if isinstance(turn, dict):
        speaker, value = turn.get("from"), turn.get("value")
        if isinstance(speaker, str) and isinstance(value, str):
            return _Turn(role=_role(speaker), text=_without_lone_surrogates(value))
    raise DataInvalid(
        f"{where}, turn {number} needs the texts from and value.",
        f"Give ShareGPT conversations: {_EXAMPLE}",
    )


def _role(speaker: str) -> str:
    if speaker in _USER_ROLES:
        return "user"
    return "assistant" if speaker in _ASSISTANT_ROLES else speaker


def _without_lone_surrogates(text: str) -> str:
    # JSON can spell half of a surrogate pair, which no UTF-8 tokenizer accepts.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _to_conversation(name: str, turns: list[_Turn]) -> tuple[Conversation | None, list[Dropped]]:
    notes: list[Dropped] = []
    system = None
    if turns and turns[0].role == _SYSTEM_ROLE:
        system, turns = turns[0].text, turns[1:]
    if not any(turn.role == "assistant" for turn in turns):
        return None, [Dropped(id=name, why="no assistant turn")]
    num_leading = _count_leading(turns, "assistant")
    if num_leading:
        notes.append(Dropped(id=name, why=f"{num_leading} leading assistant turns removed"))
        turns = turns[num_leading:]
    if turns and turns[-1].role == "user":
        notes.append(Dropped(id=name, why="unanswered last user turn removed"))
        turns = turns[:-1]
    problem = _problem(turns)
    if problem is not None:
        return None, [*notes, Dropped(id=name, why=problem)]
    pairs = tuple(
        Pair(user=user.text, assistant=assistant.text)
        for user, assistant in zip(turns[::2], turns[1::2], strict=True)
    )
    return Conversation(id=name, system=system, pairs=pairs), notes


def _count_leading(turns: Iterable[_Turn], role: str) -> int:
    count = 0
    for turn in turns:
        if turn.role != role:
            break
        count += 1
    return count


def _problem(turns: Sequence[_Turn]) -> str | None:
    if not turns:
        return "no answered user turn"
    for number, turn in enumerate(turns, start=1):
        expected = "user" if number % 2 else "assistant"
        if turn.role != expected:
            return f"wrong role order: {turn.role!r} where {expected} is due (turn {number})"
        if not turn.text.strip():
            return f"turn {number} is empty"
    return None
