"""The questions of an evaluation: those that come along, or the user's, as JSON lines.

The format is FastChat's (fastchat/llm_judge/data/vicuna_bench/question.jsonl); the older one of the
Vicuna blog, with `text` in place of `turns`, is read, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from checkpoints.regular_files import read_regular
from orchestrator.errors import InputError

DEFAULT_NAME = "questions.jsonl"
# 80 questions with answers have 0.2 MB.
_MOST_BYTES = 64 << 20


class Question(BaseModel):
    """One question; later turns follow up on the answer to the one before."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)

    question_id: str = Field(min_length=1)
    category: str = Field(min_length=1)
    turns: tuple[str, ...] = Field(min_length=1, validation_alias=AliasChoices("turns", "text"))
    reference: tuple[str, ...] = ()
    """Right answers by turn, for judges who cannot reckon; empty where there are none."""

    @field_validator("turns", mode="before")
    @classmethod
    def _as_turns(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("turns")
    @classmethod
    def _no_empty_turn(cls, turns: tuple[str, ...]) -> tuple[str, ...]:
        if not all(turn.strip() for turn in turns):
            raise ValueError("a turn is empty")
        return turns


def read_questions(path: Path | None) -> tuple[Question, ...]:
    """Return the questions of a file, or the 80 that come along.

    Raises:
        InputError: the file cannot be read, has no question, or one that is none.
    """
    if path is None:
        text = (resources.files(__package__) / DEFAULT_NAME).read_text(encoding="utf-8")
        return _parse(text, DEFAULT_NAME)
    return _parse(_read_text(path), str(path))


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a file that are not blank, with their numbers.

    Only a line feed ends one: JSON may hold what Python's splitlines takes for an end.

    Raises:
        InputError: it cannot be read, or has none.
    """
    lines = _lines(_read_text(path))
    if not lines:
        raise InputError(f"{path} is empty.", "Write one JSON object per line.")
    return lines


def check_unique(name: str, ids: Sequence[str]) -> None:
    """Raise InputError where one question_id is there twice."""
    twice = [one for one, num in Counter(ids).items() if num > 1]
    if twice:
        raise InputError(f"{name}: question_id {twice[0]} is there twice.", "Number them.")


def _read_text(path: Path) -> str:
    try:
        return read_regular(path, _MOST_BYTES).decode()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text.", "Save it as UTF-8.") from error


def _lines(text: str) -> list[tuple[int, str]]:
    numbered = enumerate(text.split("\n"), start=1)
    return [(number, line) for number, line in numbered if line.strip()]


def _parse(text: str, name: str) -> tuple[Question, ...]:
    questions = []
    for number, line in _lines(text):
        try:
            questions.append(Question.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise InputError(
                f"{name} line {number}: {where}: {first['msg']}.",
                'Write one per line: {"question_id": 1, "category": "math", "turns": ["..."]}',
            ) from error
    if not questions:
        raise InputError(f"{name} holds no question.", "Write one JSON object per line.")
    check_unique(name, [one.question_id for one in questions])
    return tuple(questions)
