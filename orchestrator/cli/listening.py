"""Where `serve` and `dashboard` listen."""

from __future__ import annotations

import socket

from orchestrator.errors import UsageError


def look_up(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    """Return the family and the numeric address of a host; raise UsageError if it has none."""
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # as no name in it can be: empty, or too long
        raise UsageError(
            f"{host!r:.80} is no address of this machine.", "Change --host."
        ) from error
    return family, str(place[0])
