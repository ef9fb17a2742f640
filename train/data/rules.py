"""Clean one conversation: what is converted, cut, joined or dropped, and the reason of each.

Pure functions. What needs all conversations (duplicates) is decided in `cleaning`, what needs a
tokenizer in `split`. The order of the steps is in docs/data.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b

from train.data.conversations import Conversation, Pair, Turn
from train.data.language import language_of
from train.data.markdown import HtmlUnreadable, clean_answer, clean_question

# As FastChat's clean_sharegpt: a model must not say that somebody else made it.
BLOCKED = ("openai", "chatgpt")
# What the page said in the model's place; an answer is short and begins so, a text about it is not.
_PAGE_ERRORS = (
    "too many requests",
    "!too many requests",
    "you've reached our limit of messages",
    "an error occurred. if this issue persists",
    "error in body stream",
    "network error",
    "something went wrong",
)
_MAX_PAGE_ERROR = 300
_SYSTEM = "system"
# Many conversations begin with "Hi" and "Hello! How can I help you?"; those are not duplicates.
_OPENING_LENGTH = 200


class Reason(str, Enum):
    """Why a conversation was dropped or is not as it was."""

    NOT_A_CONVERSATION = "not-a-conversation"
    NO_ANSWER = "no-answered-question"
    BLOCKED = "blocked-phrase"
    LANGUAGE = "other-language"
    TEMPLATE = "refused-by-template"
    DUPLICATE_ID = "duplicate-id"
    DUPLICATE_OPENING = "duplicate-opening"
    CONVERTED = "html-converted"
    LABELS = "labels-removed"
    LEADING_ANSWER = "leading-answer-removed"
    JOINED = "questions-joined"
    UNANSWERED = "unanswered-question-removed"
    CUT_AT_EMPTY = "cut-at-empty-turn"
    CUT_AT_PAGE_ERROR = "cut-at-page-error"
    CUT_AT_ROLE = "cut-at-wrong-role"
    CUT_AT_HTML = "cut-at-unreadable-html"
    SPLIT = "split"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the user can choose; `language` None keeps all."""

    blocked: tuple[str, ...] = BLOCKED
    language: str | None = None
    keep_html: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One thing that happened to a conversation."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """The conversation, None where it is dropped, and what happened; a drop's reason is last."""

    conversation: Conversation | None
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    role: str
    text: str
    was_html: bool = False
    is_changed: bool = False
    is_unreadable: bool = False


def clean_conversation(name: str, turns: Sequence[Turn], rules: Rules) -> Cleaned:
    """Return the conversation as it can be trained on; cleaning it again changes nothing."""
    system = None
    if turns and turns[0].role == _SYSTEM:
        system, turns = turns[0].text.strip() or None, turns[1:]
    texts = [_clean_turn(turn, rules) for turn in turns]
    notes: list[Note] = []
    texts = _join_questions(_without_leading_answers(texts, notes), notes)
    pairs, last = _pairs(texts)
    if last is not None:
        notes.append(last)
    used = texts[: 2 * len(pairs)]
    notes += _conversions(used)
    conversation = Conversation(id=name, system=system, pairs=pairs)
    drop = _why_dropped(conversation, rules, notes)
    if drop is not None:
        return Cleaned(conversation=None, notes=(*notes, drop))
    return Cleaned(conversation=conversation, notes=tuple(notes))


def opening_digest(conversation: Conversation) -> bytes:
    """Return what two copies of a conversation share, whatever their spaces, case and length.

    The first turns that hold some 200 characters, and the whole of a shorter conversation.
    """
    parts: list[str] = []
    for pair in conversation.pairs:
        parts += [normalised(pair.user), normalised(pair.assistant)]
        if sum(map(len, parts)) >= _OPENING_LENGTH:
            break
    return blake2b("\0".join(parts).encode(), digest_size=16).digest()


def normalised(text: str) -> str:
    """Return a text without the differences that copies have."""
    return " ".join(text.casefold().split())


def _clean_turn(turn: Turn, rules: Rules) -> _Text:
    if turn.role != "assistant":
        text = clean_question(turn.text)
        return _Text(role=turn.role, text=text, is_changed=text.strip() != turn.text.strip())
    try:
        text, was_html = clean_answer(turn.text, keep_html=rules.keep_html)
    except HtmlUnreadable:
        return _Text(role=turn.role, text=turn.text, is_unreadable=True)
    is_changed = not was_html and text.strip() != turn.text.strip()
    return _Text(role=turn.role, text=text, was_html=was_html, is_changed=is_changed)


def _without_leading_answers(texts: Sequence[_Text], notes: list[Note]) -> list[_Text]:
    start = next((n for n, text in enumerate(texts) if text.role != "assistant"), len(texts))
    if start:
        notes.append(Note(reason=Reason.LEADING_ANSWER, detail=f"{start} turns"))
    return list(texts[start:])


def _join_questions(texts: Iterable[_Text], notes: list[Note]) -> list[_Text]:
    """Make one of questions in a row: nothing was said in between."""
    joined: list[_Text] = []
    num_joined = 0
    for text in texts:
        if joined and text.role == joined[-1].role == "user":
            before = joined.pop()
            parts = dict.fromkeys(part for part in (before.text, text.text) if part.strip())
            text = _Text(role="user", text=clean_question("\n\n".join(parts)))
            num_joined += 1
        joined.append(text)
    if num_joined:
        notes.append(Note(reason=Reason.JOINED, detail=f"{num_joined} turns"))
    return joined


def _pairs(texts: Sequence[_Text]) -> tuple[tuple[Pair, ...], Note | None]:
    """Return the pairs up to the first turn that breaks the conversation, and what that was.

    What came before is whole; what comes after answers something that is not there.
    """
    pairs: list[Pair] = []
    for start in range(0, len(texts), 2):
        number = start + 1
        if start + 1 == len(texts) and texts[start].role == "user":
            return tuple(pairs), Note(reason=Reason.UNANSWERED)
        for offset, role in enumerate(("user", "assistant")[: len(texts) - start]):
            reason = _why_cut(texts[start + offset], role)
            if reason is not None:
                detail = f"at turn {number + offset}, {len(texts) - start} turns removed"
                return tuple(pairs), Note(reason=reason, detail=detail)
        pairs.append(Pair(user=texts[start].text, assistant=texts[start + 1].text))
    return tuple(pairs), None


def _why_cut(text: _Text, role: str) -> Reason | None:
    if text.role != role:
        return Reason.CUT_AT_ROLE
    if text.is_unreadable:
        return Reason.CUT_AT_HTML
    if not text.text.strip():
        return Reason.CUT_AT_EMPTY
    if role == "assistant" and len(text.text) <= _MAX_PAGE_ERROR:
        said = text.text.strip().casefold().replace("’", "'")
        if said.startswith(_PAGE_ERRORS):
            return Reason.CUT_AT_PAGE_ERROR
    return None


def _conversions(texts: Sequence[_Text]) -> list[Note]:
    notes = []
    for reason, count in (
        (Reason.CONVERTED, sum(text.was_html for text in texts)),
        (Reason.LABELS, sum(text.is_changed for text in texts)),
    ):
        if count:
            notes.append(Note(reason=reason, detail=f"{count} turns"))
    return notes


def _why_dropped(conversation: Conversation, rules: Rules, notes: Sequence[Note]) -> Note | None:
    if not conversation.pairs:
        # What was taken away says why nothing is left.
        return Note(reason=Reason.NO_ANSWER, detail=notes[-1].reason.value if notes else "")
    for number, pair in enumerate(conversation.pairs, start=1):
        said = pair.assistant.casefold()
        for phrase in rules.blocked:
            if phrase.casefold() in said:
                return Note(reason=Reason.BLOCKED, detail=f"{phrase!r} in answer {number}")
    if rules.language is not None:
        found = language_of(conversation)
        if found != rules.language:
            return Note(reason=Reason.LANGUAGE, detail=found)
    return None
