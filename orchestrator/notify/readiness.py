"""What keeps the messages from being sent that a spec asks for, before there is a run."""

from __future__ import annotations

from orchestrator.errors import MissingDependency
from orchestrator.notify.addresses import find_addresses, how_to_set
from orchestrator.notify.messenger import Address, open_addresses
from orchestrator.spec import RunSpec


def what_is_missing(spec: RunSpec) -> str | None:
    """Return why nothing would be sent, None where it would be, or nothing is asked for.

    Raises:
        UsageError: an address cannot be used; its secret part is not repeated.
    """
    if spec.tracking.notify is None:
        return None
    try:
        known = known_addresses()
    except MissingDependency as error:
        lost = "nothing is sent" if spec.is_local else "the addresses are not checked here"
        return f"{error.what} So {lost}: {error.next_step}"
    if known:
        return None
    return f"No address for notifications is known, so none is sent. {how_to_set()}"


def known_addresses() -> list[Address]:
    """Return the addresses of this machine, an empty list without any.

    Raises:
        MissingDependency: there are some, but apprise is not installed.
        UsageError: one cannot be used, or the file cannot be read.
    """
    told = find_addresses()
    return [] if told is None else open_addresses(told)
