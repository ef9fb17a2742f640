"""Where a server of the OpenAI API is, and which secrets it may be sent."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from orchestrator.errors import UsageError

SERVE_KEY, OPENAI_KEY = "ORCHESTRATE_SERVE_API_KEY", "OPENAI_API_KEY"
OPENAI_HOST = "api.openai.com"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def resolve_url(url: str) -> str:
    """Return the API's address, with the /v1 that people leave out; raise UsageError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"{url!r} is no server's address.",
            "Write http://HOST:PORT. To serve a run or a folder: orchestrate serve --local MODEL",
        )
    path = parts.path.rstrip("/") or "/v1"
    return parts._replace(path=path, query="", fragment="").geturl()


def find_key(url: str, environ: Mapping[str, str]) -> str | None:
    """Return the key for this server; OpenAI's is sent to OpenAI alone."""
    is_openai = urlsplit(url).hostname == OPENAI_HOST
    return (environ.get(OPENAI_KEY) if is_openai else None) or environ.get(SERVE_KEY) or None


def is_exposed(url: str) -> bool:
    """Say whether what is sent can be read on the way."""
    return urlsplit(url).scheme == "http" and not is_loopback(url)


def is_loopback(url: str) -> bool:
    """Say whether the server is on this machine."""
    return urlsplit(url).hostname in _LOOPBACK


@contextmanager
def own_settings(url: str) -> Iterator[None]:
    """Keep an account's names and headers for OpenAI from every other server: openai reads them."""
    is_openai = urlsplit(url).hostname == OPENAI_HOST
    names = [] if is_openai else [name for name in os.environ if name.startswith("OPENAI_")]
    kept = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(kept)
