"""Which secrets the server that is talked to may be sent."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from orchestrator.openai_api import OPENAI_KEY, is_loopback, is_openai

SERVE_KEY = "ORCHESTRATE_SERVE_API_KEY"


def find_key(url: str, environ: Mapping[str, str]) -> str | None:
    """Return the key for this server; OpenAI's is sent to OpenAI alone, and no other to it."""
    return environ.get(OPENAI_KEY if is_openai(url) else SERVE_KEY) or None


def is_exposed(url: str) -> bool:
    """Say whether what is sent can be read on the way."""
    return urlsplit(url).scheme == "http" and not is_loopback(url)
