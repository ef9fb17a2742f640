"""A server of the OpenAI API: its models, and answers as they arrive."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from orchestrator.chat.address import SERVE_KEY, find_key
from orchestrator.errors import ServerUnusable
from orchestrator.openai_api import OPENAI_HOST, OPENAI_KEY, open_client, what_it_said

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

# A loaded server answers late.
_READ_S = 300.0
# The client's own default.
_RETRIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What the user chose of how answers are made; None leaves it to the server."""

    max_tokens: int | None = None
    temperature: float | None = None


class End(str, Enum):
    """Why an answer ended."""

    COMPLETE = "complete"
    LENGTH = "length"
    STOPPED = "stopped"  # by the user
    CUT = "cut"  # without the server's word that it was over


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a server sends at a time: some text, its end, or how many tokens it had."""

    text: str
    end: End | None
    num_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer, with what it took in seconds; `why` is a sentence on how it was cut."""

    text: str
    end: End
    num_tokens: int
    """As the server counts, else the pieces that it sent."""
    first_s: float | None
    seconds: float
    why: str = ""

    @property
    def tokens_per_s(self) -> float | None:
        """Return the speed after the first token, None where there was no second one."""
        if self.first_s is None or self.num_tokens < 2 or self.seconds <= self.first_s:
            return None
        return (self.num_tokens - 1) / (self.seconds - self.first_s)


class Server:
    """A server at an address that `resolve_url` returned."""

    def __init__(self, url: str, environ: Mapping[str, str]) -> None:
        """Make the client; raise MissingDependency. Nothing is sent yet."""
        self.url = url
        self._client = open_client(url, find_key(url, environ), timeout_s=_READ_S, retries=_RETRIES)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def models(self) -> list[str]:
        """Return the names of the models that it serves; raise ServerUnusable."""
        with _explained(self.url):
            # What is no such server may answer with anything.
            found: Any = self._client.models.list()
            names = [_text_of(one.id) for one in getattr(found, "data", None) or ()]
        if not names:
            raise ServerUnusable(
                f"{self.url} names no model.", "Check the address; it ends in /v1 as a rule."
            )
        return names

    def answer(
        self,
        model: str,
        messages: Sequence[ChatCompletionMessageParam],
        sampling: Sampling,
        show: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> Answer:
        """Ask, call `show` with each piece of text as it arrives, and return the whole.

        Ctrl-C stops it. Raises ServerUnusable where no answer began; one that broke off is CUT.
        """
        pieces: list[str] = []
        began, first, counted, end, why = (
            clock(),
            None,
            0,
            End.CUT,
            "the server did not say that it was over.",
        )
        try:
            for piece in self.pieces(model, messages, sampling):
                counted, end = piece.num_tokens or counted, piece.end or end
                if piece.text:
                    first = clock() if first is None else first
                    pieces.append(piece.text)
                    show(piece.text)
        except KeyboardInterrupt:
            end = End.STOPPED
        except ServerUnusable as error:
            if not pieces:
                raise
            end, why = End.CUT, error.what
        return Answer(
            text="".join(pieces),
            end=end,
            num_tokens=counted or len(pieces),
            first_s=None if first is None else first - began,
            seconds=clock() - began,
            why=why if end is End.CUT else "",
        )

    def pieces(
        self, model: str, messages: Sequence[ChatCompletionMessageParam], sampling: Sampling
    ) -> Iterator[Piece]:
        """Ask and yield what arrives; raise ServerUnusable, also where it breaks off."""
        given = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
        options: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
        with (
            _explained(self.url),
            self._client.chat.completions.create(
                model=model, messages=list(messages), stream=True, **options
            ) as stream,
        ):
            for chunk in stream:
                counted = chunk.usage.completion_tokens if chunk.usage else None
                for choice in chunk.choices[:1]:
                    yield Piece(
                        text=_text_of(choice.delta.content or ""),
                        end=_end_of(choice.finish_reason),
                        num_tokens=counted if isinstance(counted, int) and counted > 0 else None,
                    )


def _text_of(said: object) -> str:
    if not isinstance(said, str):
        raise TypeError(f"{said!r:.40} is no text")
    return said


def _end_of(reason: str | None) -> End | None:
    if reason is None:
        return None
    return End.LENGTH if reason == "length" else End.COMPLETE


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Raise ServerUnusable for whatever openai raises, also in the middle of an answer."""
    import openai

    try:
        yield
    except openai.APITimeoutError as error:
        raise ServerUnusable(
            f"{url} did not answer in time.", "Try again, or look at the server's log."
        ) from error
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        raise ServerUnusable(
            f"{url} cannot be reached ({what_it_said(cause)}).",
            "Check that it runs; a server here: orchestrate serve --local MODEL",
        ) from error
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise ServerUnusable(
            f"{url} refused the key ({what_it_said(error)}).",
            f"Put its key into {SERVE_KEY} (for {OPENAI_HOST}: {OPENAI_KEY}).",
        ) from error
    except openai.APIError as error:
        raise ServerUnusable(
            f"{url} refused ({what_it_said(error)}).",
            "Check the address and the model; if the conversation is too long, begin anew.",
        ) from error
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # Not JSON, or JSON of another kind: openai checks little of what it reads.
        raise ServerUnusable(
            f"{url} does not speak the OpenAI API.",
            "Check the address; it ends in /v1 as a rule.",
        ) from error
