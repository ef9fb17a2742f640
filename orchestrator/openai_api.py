"""Servers of the OpenAI API: their addresses, and a client that tells each what it may know."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from checkpoints.addresses import check_key, check_proxies, split_address
from checkpoints.errors import AddressInvalid
from orchestrator.errors import MissingDependency, UsageError
from orchestrator.redact import redact

if TYPE_CHECKING:
    from openai import OpenAI

OPENAI_KEY = "OPENAI_API_KEY"
OPENAI_HOST = "api.openai.com"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# A dead address should not take long to be told.
_CONNECT_S = 10.0
_MOST_SAID = 200
_LEAST_KEY = 8


def resolve_url(url: str) -> str:
    """Return the API's address, with the /v1 that people leave out.

    Raises:
        UsageError: it is none, or has a password in it.
    """
    try:
        parts = split_address(url)
    except AddressInvalid as error:
        raise UsageError(
            error.what,
            "Write http://HOST:PORT. To serve a run or a folder: orchestrate serve --local MODEL",
        ) from error
    if parts.username or parts.password:
        raise UsageError(
            f"The address of {parts.hostname} has a password in it.",
            "Addresses are shown and kept: leave it out, and set the variable for the key.",
        )
    path = parts.path.rstrip("/") or "/v1"
    return parts._replace(path=path, query="", fragment="").geturl()


def is_loopback(url: str) -> bool:
    """Say whether the server is on this machine."""
    return urlsplit(url).hostname in _LOOPBACK


def is_openai(url: str) -> bool:
    """Say whether it is OpenAI's own, whose key everybody has in one variable."""
    return urlsplit(url).hostname == OPENAI_HOST


def open_client(url: str, key: str | None, *, timeout_s: float, retries: int) -> OpenAI:
    """Return openai's client for an address; nothing is sent yet.

    Raises:
        MissingDependency: it is not installed.
        AddressInvalid: the key or a proxy in the environment cannot be one.
        UsageError: the environment names certificates that cannot be read.
    """
    try:
        import openai  # an extra, and 0.5 s
    except ImportError as error:
        raise MissingDependency(
            f"Asking a model needs {error.name}, which is not installed.",
            "pip install 'spot-orchestrator[eval]'",
        ) from error
    timeout = openai.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S))
    # A proxy cannot reach the loopback that is meant.
    trusts_proxies = not is_loopback(url)
    if trusts_proxies:
        check_proxies()
    check_key(key or "", "The API key")
    try:
        http_client = openai.DefaultHttpxClient(timeout=timeout, trust_env=trusts_proxies)
    except OSError as error:  # of ssl, too
        raise UsageError(
            f"The certificates of this machine cannot be read: {error.strerror or error}.",
            "Correct or unset SSL_CERT_FILE and SSL_CERT_DIR.",
        ) from error
    with _own_settings(url):
        return openai.OpenAI(
            base_url=url,
            # The client wants one; many servers do not.
            api_key=key or "none",
            max_retries=retries,
            timeout=timeout,
            http_client=http_client,
        )


def what_it_said(error: BaseException) -> str:
    """Return the first words of what went wrong, on one line and without keys."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    words = " ".join(str(message or error or type(error).__name__).split())
    # Some servers repeat the key that they refuse, and it need not look like one.
    key = _key_sent(error)
    return redact(words.replace(key, "[hidden]") if key else words)[:_MOST_SAID].rstrip(".")


def _key_sent(error: BaseException) -> str | None:
    """Return the key of the request that was answered so; shorter ones are words, as `none` is."""
    request = getattr(getattr(error, "response", None), "request", None)
    if request is None:
        return None
    _, _, key = request.headers.get("authorization", "").partition("Bearer ")
    return key if len(key) >= _LEAST_KEY else None


@contextmanager
def _own_settings(url: str) -> Iterator[None]:
    """Keep an account's names and headers for OpenAI from every other server: openai reads them."""
    names = [] if is_openai(url) else [name for name in os.environ if name.startswith("OPENAI_")]
    kept = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(kept)
