"""A model's answers to the questions: asked for turn by turn, or read from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from orchestrator.errors import InputError
from orchestrator.evaluation.asking import Asker, Message, Reply, Request
from orchestrator.evaluation.questions import Question, read_text

Answers: TypeAlias = tuple[str, ...]
"""One for each turn of a question."""
Answering: TypeAlias = Callable[[Question], Answers | None]
"""Returns a model's answers; None where it has none, or only to the first turns."""


class _Line(BaseModel):
    """A line of FastChat's answer files: `text` in 2023's, `choices` in MT-bench's."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)
    question_id: str
    turns: tuple[str, ...] = Field(
        min_length=1, validation_alias=AliasChoices("text", AliasPath("choices", 0, "turns"))
    )

    @field_validator("turns", mode="before")
    @classmethod
    def _as_turns(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


def answer(asker: Asker, question: Question, max_tokens: int) -> Answers | None:
    """Ask a model all turns of a question, each with the conversation so far.

    An empty answer is an answer. Raises what Asker.ask raises.
    """
    messages: list[Message] = []
    said: list[str] = []
    for turn in question.turns:
        messages.append(Message(role="user", content=turn))
        reply = asker.ask(Request(messages=tuple(messages), max_tokens=max_tokens))
        if not isinstance(reply, Reply):
            return None
        messages.append(Message(role="assistant", content=reply.text))
        said.append(reply.text)
    return tuple(said)


def read_answers(path: Path) -> Answering:
    """Return what answers from a file of answers, JSON lines as FastChat writes them.

    Raises:
        InputError: the file cannot be read, or a line is no answer.
    """
    known: dict[str, Answers] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            found = _Line.model_validate_json(line)
        except ValidationError as error:
            raise InputError(
                f"{path} line {number} is no answer: it needs question_id and text.",
                'Write one per line: {"question_id": 1, "text": "..."}',
            ) from error
        known[found.question_id] = found.turns
    if not known:
        raise InputError(f"{path} holds no answer.", "Choose another file.")

    def look_up(question: Question) -> Answers | None:
        found = known.get(question.question_id)
        return found if found is not None and len(found) == len(question.turns) else None

    return look_up
