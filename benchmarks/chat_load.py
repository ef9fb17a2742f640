"""Clients that chat with a server as fast as it answers, and when they were answered."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import openai

_REQUEST_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One request; seconds. Without tokens it failed."""

    first_s: float = 0.0
    num_tokens: int = 0


def load(url: str, model: str, *, clients: int, seconds: float, max_tokens: int) -> list[Answer]:
    """Return what so many clients were answered that each asked one thing after another."""
    until = time.perf_counter() + seconds

    def ask_on(number: int) -> list[Answer]:
        answers: list[Answer] = []
        while time.perf_counter() < until:
            answers.append(_ask(client, model, number * 1000 + len(answers), max_tokens))
        return answers

    with (
        openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=_REQUEST_S) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        return [answer for answers in pool.map(ask_on, range(clients)) for answer in answers]


def _ask(client: openai.OpenAI, model: str, number: int, max_tokens: int) -> Answer:
    began, first, tokens = time.perf_counter(), 0.0, 0
    try:
        for chunk in client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"Tell a story of {number} rivers."}],
            max_tokens=max_tokens,
            temperature=0,
            stream=True,
        ):
            if not first and chunk.choices and chunk.choices[0].delta.content:
                first = time.perf_counter() - began
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
    except openai.OpenAIError:
        return Answer()
    return Answer(first_s=first, num_tokens=tokens)
