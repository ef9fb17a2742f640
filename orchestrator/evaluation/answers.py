"""A model's answers to the questions: asked for turn by turn, or read from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from orchestrator.evaluation.asking import Asker
from orchestrator.evaluation.endpoint import Message, Reply, Request
from orchestrator.evaluation.questions import Question, check_unique, read_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A model's answers to one question, one for each turn."""

    turns: tuple[str, ...]
    is_cut: bool = False
    """One of them came to the limit of tokens before its end."""


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
    is_cut = False
    for turn in question.turns:
        messages.append(Message(role="user", content=turn))
        reply = asker.ask(Request(messages=tuple(messages), max_tokens=max_tokens))
        if not isinstance(reply, Reply):
            return None
        messages.append(Message(role="assistant", content=reply.text))
        said.append(reply.text)
        is_cut = is_cut or not reply.is_complete
    return Answers(turns=tuple(said), is_cut=is_cut)


def read_answers(path: Path) -> Answering:
    """Return what answers from a file of answers, JSON lines as FastChat writes them.

    Raises:
        InputError: the file cannot be read, or a line is no answer.
    """
    lines = []
    for number, line in read_lines(path):
        try:
            found = _Line.model_validate_json(line)
        except ValidationError as error:
            raise InputError(
                f"{path} line {number} is no answer: it needs question_id and text.",
                'Write one per line: {"question_id": 1, "text": "..."}',
            ) from error
        lines.append(found)
    check_unique(str(path), [one.question_id for one in lines])
    known = {one.question_id: one.turns for one in lines}

    def look_up(question: Question) -> Answers | None:
        found = known.get(question.question_id)
        if found is None or len(found) != len(question.turns):
            return None
        return Answers(turns=found)

    return look_up
