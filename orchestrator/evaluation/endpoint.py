"""A model behind an OpenAI-compatible address: what is asked, and what counts as a reply."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import CloudRefused, GaveUp, UsageError
from orchestrator.openai_api import open_client, what_it_said

if TYPE_CHECKING:
    import openai
    from openai import OpenAI
    from openai.types.chat import ChatCompletion

# Retries of the client: with its waits (0.5 s, doubled, to 8 s; what the server asks, to 2 min)
# they bridge a minute without the server, and any rate limit that says how long to wait.
RETRIES = 5
# After so many requests in a row without a reply the server is down, not one request bad.
_FAILURES_IN_A_ROW = 8
# What newer or smaller servers do not take, and what to say instead.
_INSTEAD: dict[str, dict[str, str]] = {
    "max_tokens": {"max_tokens": "max_completion_tokens"},
    "temperature": {},
    "seed": {},
    "response_format": {},
}

_DOES_NOT_KNOW = re.compile(
    r"(?i)\b(?:not support|unsupported|unrecogni[sz]ed|unknown|unexpected|not permitted|extra)"
)

_log = logging.getLogger(__name__)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(_Record):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Request(_Record):
    """What is asked; two requests that are equal get the same reply."""

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    json_schema: dict[str, Any] | None = None


class Reply(_Record):
    """What was answered, and what it took."""

    schema_version: int = 1
    text: str
    is_complete: bool
    """False where the answer was cut off at `max_tokens`."""
    is_refused: bool = False
    prompt_tokens: int
    completion_tokens: int
    at: datetime


class NoReply(str, Enum):
    """Why there is no reply. None of these is kept: the next time it is asked again."""

    TIMED_OUT = "timed out"
    RATE_LIMITED = "rate limited"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    """The server takes this request for bad: too long, or against its policy."""


Answered: TypeAlias = Reply | NoReply


class Endpoint:
    """A model's endpoint; several threads may ask it."""

    def __init__(self, model: str, connect: Callable[[], OpenAI]) -> None:
        """Ask a model of this name; `connect` returns openai's client, once it is needed."""
        self._model, self._connect = model, connect
        self._opened: OpenAI | None = None
        self._lock, self._opening = threading.Lock(), threading.Lock()
        self._not_taken: set[str] = set()
        self._failures = 0
        self._down: NoReply | None = None
        self.why_refused: str | None = None
        """What it said of the last request that it did not take."""

    def check_up(self) -> None:
        """Raise GaveUp if it has not answered for so long that it was not asked any more."""
        if self._down is not None:
            raise GaveUp(
                f"{self._where} gave no reply {_FAILURES_IN_A_ROW} times in a row: "
                f"{self._down.value}.",
                "Try again later: the same command goes on where it was.",
            )

    def reply(self, request: Request) -> Answered:
        """Ask and return the reply, or why there is none; see `check_up` for when it asks no more.

        Raises:
            CloudRefused: it does not accept the key.
            UsageError: it has no such model.
        """
        return self._down or self._ask(request)

    def _client(self) -> OpenAI:
        with self._opening:
            if self._opened is None:
                self._opened = self._connect()
            return self._opened

    @property
    def _where(self) -> str:
        return str(self._client().base_url)

    def _ask(self, request: Request) -> Answered:
        import openai  # 0.4 s, which only evaluations pay

        try:
            answer = self._complete(request)
        except openai.APITimeoutError:
            return self._failed(NoReply.TIMED_OUT)
        except openai.APIConnectionError as error:
            _log.info("%s: %s", self._where, error.__cause__ or error)
            return self._failed(NoReply.UNREACHABLE)
        except openai.RateLimitError:
            return self._failed(NoReply.RATE_LIMITED)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise CloudRefused(
                f"{self._where} refuses the key: {what_it_said(error)}", "Check the API key."
            ) from error
        except openai.NotFoundError as error:
            raise UsageError(
                f"{self._where} knows no model {self._model!r}: {what_it_said(error)}",
                "Name one that it lists under /models, as in URL#NAME.",
            ) from error
        except openai.APIStatusError as error:
            if error.status_code >= 500:  # HTTP: the server's own fault
                return self._failed(NoReply.UNREACHABLE)
            self.why_refused = what_it_said(error)
            _log.info("%s does not take a request: %s", self._where, self.why_refused)
            return NoReply.REFUSED
        except openai.OpenAIError as error:  # bytes that are no reply at all
            _log.info("%s: %s", self._where, error)
            return self._failed(NoReply.UNREACHABLE)
        return self._read(answer)

    def _complete(self, request: Request) -> ChatCompletion:
        """Ask; without what the endpoint says that it does not take, from then on."""
        import openai  # as above

        with self._lock:
            not_taken = frozenset(self._not_taken)
        while True:
            try:
                answer: ChatCompletion = self._client().chat.completions.create(
                    **self._body(request, not_taken)
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                named = _named_by(error) - not_taken
                if not named:
                    raise
                not_taken |= named
            else:
                with self._lock:
                    self._not_taken |= not_taken
                return answer

    def _body(self, request: Request, not_taken: frozenset[str]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        if request.json_schema is not None:
            schema = {"name": "verdict", "strict": True, "schema": request.json_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        for name in not_taken & body.keys():
            value = body.pop(name)
            body |= {instead: value for instead in _INSTEAD[name].values()}
        messages = [one.model_dump() for one in request.messages]
        return {"model": self._model, "messages": messages, **body}

    def _read(self, answer: ChatCompletion) -> Answered:
        try:
            choice, usage = answer.choices[0], answer.usage
            refusal = getattr(choice.message, "refusal", None)
            text = refusal or choice.message.content or ""
            reply = Reply(
                # Half a character, as servers send them, can be kept nowhere.
                text=str(text).encode("utf-8", "replace").decode(),
                is_complete=choice.finish_reason != "length",
                is_refused=bool(refusal) or choice.finish_reason == "content_filter",
                # Some servers count nothing, or null.
                prompt_tokens=getattr(usage, "prompt_tokens", None) or 0,
                completion_tokens=getattr(usage, "completion_tokens", None) or 0,
                at=datetime.now(timezone.utc),
            )
        except (AttributeError, IndexError, TypeError, ValidationError):
            _log.info("%s sent what is no chat completion", self._where)
            return self._failed(NoReply.UNREACHABLE)
        with self._lock:
            self._failures = 0
        return reply

    def _failed(self, why: NoReply) -> NoReply:
        with self._lock:
            self._failures += 1
            if self._failures >= _FAILURES_IN_A_ROW:
                self._down = why
        return why


def list_models(url: str, key: str | None, timeout_s: float) -> list[str]:
    """Return the names of the models behind an address.

    Raises:
        UsageError: it lists none.
        CloudRefused: it refuses the key.
    """
    import openai  # as above

    with open_client(url, key, timeout_s=timeout_s, retries=1) as client:
        try:
            return [one.id for one in client.models.list()]
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise CloudRefused(
                f"{url} refuses the key: {what_it_said(error)}", "Check the API key."
            ) from error
        except openai.OpenAIError as error:
            raise UsageError(
                f"{url} does not say which models it has: {what_it_said(error)}",
                "Check the address, or name the model, as in URL#NAME.",
            ) from error


def _named_by(error: openai.APIStatusError) -> frozenset[str]:
    """Return the parameters that a server says it does not know, not those with a bad value."""
    said = error.message
    if _DOES_NOT_KNOW.search(said) is None:
        return frozenset()
    if error.param in _INSTEAD:
        return frozenset({error.param})
    return frozenset(name for name in _INSTEAD if re.search(rf"\b{name}\b", said))
