"""Where messages go to: a secret of this machine, never part of a spec, a log or a command line."""

from __future__ import annotations

import logging
import os
import re

from checkpoints.regular_files import read_regular
from orchestrator.errors import UsageError
from orchestrator.home import home

NOTIFY = "ORCHESTRATE_NOTIFY"
"""Environment variable with addresses as apprise reads them, separated by blanks."""
_FILE_NAME = "notify"
_MOST_BYTES = 1 << 20
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]{0,30})://")


def find_addresses() -> str | None:
    """Return the addresses of the variable, else those of the file; None without any.

    Raises:
        UsageError: the file cannot be read.
    """
    told = os.environ.get(NOTIFY, "")
    found = split(told) or split(_read_file())
    return " ".join(found) or None


def take_addresses(log: logging.Logger) -> str | None:
    """Return the addresses, and keep them from processes that are started later.

    A file that cannot be read is only logged: a run goes on without messages.
    """
    try:
        return find_addresses()
    except UsageError as error:
        log.warning("nobody is notified: %s", error.what)
        return None
    finally:
        os.environ.pop(NOTIFY, None)


def how_to_set() -> str:
    """Say where addresses are looked for."""
    return f"Set {NOTIFY}, or write them into {home() / _FILE_NAME}; see docs/notifications.md."


def split(text: str) -> list[str]:
    """Return the addresses in a text; lines that begin with # are comments."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return [address for line in lines for address in line.split()]


def describe(number: int, address: str) -> str:
    """Name an address by its place and service: the rest of it is secret."""
    match = _SCHEME.match(address)
    return f"address {number}" + (f" ({match[1].lower()}://)" if match else "")


def _read_file() -> str:
    path = home() / _FILE_NAME
    try:
        return read_regular(path, _MOST_BYTES).decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"Cannot read the addresses for messages in {path}: {why}.",
            f"Correct it, or set {NOTIFY}.",
        ) from None
