"""What a judge says, parsed strictly; whatever is not clearly a verdict is none, and says why."""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import assert_never

CRITERIA = ("coherence", "relevance", "fluency", "engagement")
LOWEST, HIGHEST = 1, 5
# Models that reason aloud do so first, where their server does not take it out.
_THOUGHT = re.compile(r"\A<think>.*?</think>", re.DOTALL)


class NoVerdict(str, Enum):
    """Why there is no verdict. It is counted, and never guessed."""

    REFUSED = "refused"
    MALFORMED = "malformed"
    CUT_OFF = "cut off"
    TIMED_OUT = "timed out"
    RATE_LIMITED = "rate limited"
    UNREACHABLE = "unreachable"
    NO_ANSWER = "no answer to judge"
    BUDGET = "budget used up"


class _Verdict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    explanation: str
    """Before the verdict, so that the judge thinks first (Zheng et al. 2023, section 3.4)."""


class Rating(_Verdict):
    """Scores of one answer, 1 (worst) to 5 (best)."""

    coherence: int = Field(ge=LOWEST, le=HIGHEST)
    relevance: int = Field(ge=LOWEST, le=HIGHEST)
    fluency: int = Field(ge=LOWEST, le=HIGHEST)
    engagement: int = Field(ge=LOWEST, le=HIGHEST)

    @property
    def mean(self) -> float:
        """Mean of the criteria."""
        return float(sum(getattr(self, name) for name in CRITERIA)) / len(CRITERIA)


class Preference(_Verdict):
    """Which of two answers is better, by the place in which the judge saw it."""

    better: Literal["first", "second", "tie"]


class Outcome(str, Enum):
    """How the model fared against the baseline in one question."""

    WIN = "win"
    TIE = "tie"
    LOSS = "loss"


Verdict = TypeVar("Verdict", Rating, Preference)
JsonSchema: TypeAlias = dict[str, Any]


def schema_of(kind: type[Verdict]) -> JsonSchema:
    """Return the JSON schema of a verdict in the subset that OpenAI's strict mode takes."""
    properties: JsonSchema = {"explanation": {"type": "string"}}
    if kind is Rating:
        scores = list(range(LOWEST, HIGHEST + 1))
        properties |= {name: {"type": "integer", "enum": scores} for name in CRITERIA}
    else:
        properties["better"] = {"type": "string", "enum": ["first", "second", "tie"]}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def parse(kind: type[Verdict], text: str) -> Verdict | None:
    """Return the verdict that a text consists of; None if it is anything else, or more."""
    text = _THOUGHT.sub("", text.strip()).strip()
    try:
        found = json.loads(_unfenced(text), object_pairs_hook=_each_once)
        return kind.model_validate(found)
    except (ValueError, RecursionError):  # pydantic's errors are ValueErrors
        return None


def _unfenced(text: str) -> str:
    """Return what is in the block of code that some judges make of their object, nothing beside it.

    No regular expression: one took a minute for a reply of 3,000 empty lines.
    """
    first, _, rest = text.partition("\n")
    if first.rstrip() not in ("```", "```json") or not rest.endswith("```"):
        return text
    inner, end_of_line, last = rest.removesuffix("```").rpartition("\n")
    return inner if end_of_line and not last.strip() else text


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Of two verdicts under one name neither counts; Python's parser would take the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def settle(model_first: Preference, baseline_first: Preference) -> Outcome:
    """Return the outcome of two verdicts on one pair, each answer shown first once.

    Only a verdict that stays when the places are exchanged counts, so a judge that prefers a place
    favours nobody (Zheng et al. 2023, section 3.4).
    """
    if (model_first.better, baseline_first.better) == ("first", "second"):
        return Outcome.WIN
    if (model_first.better, baseline_first.better) == ("second", "first"):
        return Outcome.LOSS
    return Outcome.TIE


def is_flipped(model_first: Preference, baseline_first: Preference) -> bool:
    """Say whether the judge preferred a place: the same one, whoever was there."""
    return model_first.better == baseline_first.better != "tie"


def points(outcome: Outcome) -> float:
    """Return what an outcome adds to the win rate; a tie is half a win."""
    match outcome:
        case Outcome.WIN:
            return 1.0
        case Outcome.TIE:
            return 0.5
        case Outcome.LOSS:
            return 0.0
        case _:
            assert_never(outcome)
