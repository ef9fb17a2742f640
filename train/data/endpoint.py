"""Ask an OpenAI-compatible endpoint: each question once, within a budget, with bounded retries.

Answers are kept in a file, so that an interrupted or repeated run neither waits nor pays again.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import httpx

from checkpoints.addresses import check_key, check_proxies, split_address
from checkpoints.errors import AddressInvalid
from train.errors import EndpointFailed, EndpointRefused

_TIMEOUT_SECONDS = 120.0
_TRIES = 5
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 60.0
# After so many questions in a row without an answer the endpoint is down, not one question bad.
_FAILURES_IN_A_ROW = 5
_TOO_MANY, _SERVER_ERROR = 429, 500
_TRY_AGAIN = "Try again later: the same command goes on where it was."


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be spent; None of dollars is no limit."""

    usd: float | None = None
    usd_per_million_tokens: float = 0.0

    def allows(self, num_tokens: int) -> bool:
        """Return whether this many tokens in all cost no more than the budget."""
        return self.usd is None or num_tokens * self.usd_per_million_tokens <= self.usd * 1e6


class Endpoint:
    """An endpoint with its cache; `ask` may be called by several threads."""

    def __init__(
        self,
        url: str,
        model: str,
        cache: Path,
        budget: Budget,
        *,
        sleep: Callable[[float], None],
        jitter: random.Random,
    ) -> None:
        self._model, self._budget = model, budget
        self._sleep, self._jitter = sleep, jitter
        # Only from the environment: a flag would be seen by every process of the machine.
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            split_address(url, "The endpoint")
            check_proxies()
            check_key(key or "", "OPENAI_API_KEY")
        except AddressInvalid as error:
            raise EndpointRefused(error.what, error.next_step) from error
        try:
            self._client = httpx.Client(
                base_url=url.rstrip("/"), headers=headers, timeout=_TIMEOUT_SECONDS
            )
        except OSError as error:  # of ssl, too
            raise EndpointRefused(
                f"The certificates of this machine cannot be read: {error.strerror or error}.",
                "Correct or unset SSL_CERT_FILE and SSL_CERT_DIR.",
            ) from error
        self._lock = threading.Lock()
        self._answers, self._tokens, length = _read_cache(cache)
        self._file = cache.open("ab")
        # The last line of a killed run may be torn.
        self._file.truncate(length)
        self._failures = 0
        self.num_asked = 0
        self.num_failed = 0
        self.is_budget_used = False

    def close(self) -> None:
        """Close the connection and the cache."""
        self._client.close()
        self._file.close()

    @property
    def usd(self) -> float:
        """What all answers in the cache have cost, those of earlier runs too."""
        return self._tokens * self._budget.usd_per_million_tokens / 1e6

    def ask(self, instruction: str, text: str) -> str | None:
        """Return the model's answer, None where there is none (budget, or it failed for good).

        Raises EndpointFailed when the endpoint refuses the request or does not answer at all.
        """
        key = sha256("\0".join((self._model, instruction, text)).encode()).hexdigest()
        # Every token is a byte at least, so this is the most that the answer can cost.
        max_tokens = 64 + 2 * len(text.encode())
        most = len(instruction.encode()) + len(text.encode()) + 64 + max_tokens
        with self._lock:
            if key in self._answers:
                return self._answers[key]
        if not self._reserve(most):
            return None
        answer, used, lost = None, 0, 0
        try:
            answer, used, lost = self._answer(instruction, text, max_tokens, most)
        finally:
            with self._lock:
                self._tokens += used - most
                self._remember(key, answer, used + lost)
        return answer

    def _reserve(self, num_tokens: int) -> bool:
        """Hold tokens until the answer says what it took, so that all threads keep the budget."""
        with self._lock:
            if not self._budget.allows(self._tokens + num_tokens):
                self.is_budget_used = True
                return False
            self._tokens += num_tokens
            self.num_asked += 1
            return True

    def _remember(self, key: str, answer: str | None, used: int) -> None:
        if answer is not None:
            self._answers[key] = answer
        if used:
            entry = {"key": key, "answer": answer, "tokens": used}
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()

    def _answer(
        self, instruction: str, text: str, max_tokens: int, most: int
    ) -> tuple[str | None, int, int]:
        """Return the answer, the tokens of the last try, and those of tries that were lost."""
        body = {
            "model": self._model,
            "messages": [
                {"role": "system", "content": instruction},
                {"role": "user", "content": text},
            ],
            "max_tokens": max_tokens,
            "temperature": 0.7,
        }
        problem, lost = "", 0
        for number in range(_TRIES):
            wait = min(_FIRST_WAIT_SECONDS * 2**number, _LONGEST_WAIT_SECONDS)
            try:
                response = self._client.post("/chat/completions", json=body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__} {error}".strip()
                # It may have been answered, and billed, without our seeing it.
                if not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                    if not self._reserve(most):
                        return None, most, lost
                    lost += most
            else:
                if response.is_success:
                    return (*self._read(response, most), lost)
                problem = f"HTTP {response.status_code}"
                if response.status_code not in (408, _TOO_MANY) and (
                    response.status_code < _SERVER_ERROR
                ):
                    raise EndpointRefused(
                        f"{self._client.base_url} refuses: {problem} {_said(response)}",
                        "Check --endpoint, --model and OPENAI_API_KEY.",
                    )
                wait = _asked_wait(response, wait)
            if number + 1 < _TRIES:
                self._sleep(wait * self._jitter.uniform(1.0, 1.5))
        self._failed(problem)
        return None, 0, lost

    def _read(self, response: httpx.Response, most: int) -> tuple[str | None, int]:
        try:
            content = response.json()
            answer = content["choices"][0]["message"]["content"]
            used = int((content.get("usage") or {}).get("total_tokens", most))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            answer, used = None, most
        if not isinstance(answer, str):
            self._failed("an answer without text")
            return None, used
        with self._lock:
            self._failures = 0
        return answer.strip(), used

    def _failed(self, problem: str) -> None:
        with self._lock:
            self._failures += 1
            self.num_failed += 1
            is_down = self._failures >= _FAILURES_IN_A_ROW
        if is_down:
            raise EndpointFailed(
                f"{self._client.base_url} gave no answer {_FAILURES_IN_A_ROW} times: {problem}.",
                _TRY_AGAIN,
            )


def _said(response: httpx.Response) -> str:
    return " ".join(response.text.split())[:120]


def _asked_wait(response: httpx.Response, wait: float) -> float:
    try:
        return min(max(float(response.headers["retry-after"]), 0.0), _LONGEST_WAIT_SECONDS)
    except (KeyError, ValueError):
        return wait


def _read_cache(path: Path) -> tuple[dict[str, str], int, int]:
    """Return the answers, the tokens that they took, and how many bytes of the file are whole."""
    answers: dict[str, str] = {}
    num_tokens = length = 0
    path.touch()
    with path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
                num_tokens += int(entry["tokens"])
                if entry["answer"] is not None:
                    answers[str(entry["key"])] = str(entry["answer"])
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            length += len(line)
    return answers, num_tokens, length
