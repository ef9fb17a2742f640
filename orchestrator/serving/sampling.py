"""What a request asks of sampling, in the words of transformers' server; no word is ignored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Where a request names no limit, and the most that it may name.
DEFAULT_MAX_TOKENS = 1024
# Zero to a precision that leaves one token its whole probability; a division by it is finite.
_GREEDY = 1e-6
# The server makes what applies temperature and top_p only if the first request's are not 1.
NOT_QUITE_ONE = 1 - 1e-6
# Fields that would change the answer, and the value that asks for nothing.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "n": (1,),
    "stop": ([],),
    "response_format": ({"type": "text"},),
    "generation_config": (),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "tool_choice": ("auto",),
    "reasoning_effort": (),
    "prediction": (),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "echo": (False,),
    "best_of": (1,),
}
_TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id")


class Refused(Exception):
    """A request that would be answered otherwise than it asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one request's tokens are drawn."""

    temperature: float
    top_p: float
    max_tokens: int | None
    """None: as many as there is room for, at most DEFAULT_MAX_TOKENS."""

    def room(self, num_prompt: int, most: int) -> int:
        """Return how many tokens may be written where so many fit together with the prompt's.

        Raises:
            Refused: fewer than what was asked for, or none.
        """
        left = most - num_prompt
        if self.max_tokens is None and left > 0:
            return min(left, DEFAULT_MAX_TOKENS)
        if self.max_tokens is None:
            raise Refused(f"The prompt's {num_prompt} tokens leave no room: {most} is the most.")
        if self.max_tokens > left:
            raise Refused(
                f"{num_prompt} tokens and max_tokens {self.max_tokens} together exceed {most}."
            )
        return self.max_tokens


def read_request(body: bytes, model: Path) -> tuple[bytes, Sampling]:
    """Return the request as the server is to have it, and its sampling.

    Raises:
        Refused: it is no request, or asks for what the server would pass over in silence.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(f"The body is no JSON: {error}.") from error
    if not isinstance(asked, dict):
        raise Refused("The body is no JSON object.")
    if not asked.get("tools") and asked.get("tool_choice") == "none":
        del asked["tool_choice"]  # with tools it would be passed over
    for field, nothing in _UNSUPPORTED.items():
        if asked.get(field) is not None and asked[field] not in nothing:
            raise Refused(f"This server does not support {field!r}.")
        asked.pop(field, None)
    settings = model_settings(model)
    sampling = _sampling(asked, settings, _max_tokens(asked))
    asked["generation_config"] = json.dumps(
        {
            **{key: settings[key] for key in _TOKENS if key in settings},
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.max_tokens or DEFAULT_MAX_TOKENS,
        }
    )
    return json.dumps(asked).encode(), sampling


def model_settings(model: Path) -> dict[str, Any]:
    """Return what the model's files say about generating."""
    for name in ("generation_config.json", "config.json"):
        path = model / name
        if path.exists():
            settings: dict[str, Any] = json.loads(path.read_bytes())
            return settings
    return {}


def _sampling(asked: dict[str, Any], settings: dict[str, Any], max_tokens: int | None) -> Sampling:
    samples = bool(settings.get("do_sample"))
    temperature = _number(asked, "temperature", 0, 2)
    top_p = _number(asked, "top_p", 0, 1)
    if temperature is None:
        temperature = (settings.get("temperature") or 1.0) if samples else 0.0
    if top_p is None:
        top_p = (settings.get("top_p") or 1.0) if samples else 1.0
    if temperature == 1:
        temperature = NOT_QUITE_ONE
    return Sampling(
        temperature=max(float(temperature), _GREEDY),
        top_p=min(float(top_p), NOT_QUITE_ONE),
        max_tokens=max_tokens,
    )


def _number(asked: dict[str, Any], field: str, lowest: float, highest: float) -> float | None:
    value = asked.pop(field, None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refused(f"{field!r} is no number: {value!r}.")
    if not lowest <= value <= highest:
        raise Refused(f"{field!r} is {value}; it may be {lowest} to {highest}.")
    return float(value)


def _max_tokens(asked: dict[str, Any]) -> int | None:
    given = [asked.pop(field, None) for field in ("max_completion_tokens", "max_tokens")]
    for value in given:
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise Refused(f"The most tokens to answer with is no positive number: {value!r}.")
        return value
    return None
