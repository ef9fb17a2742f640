"""Sends one message to one address, by apprise, without a word of the address in any log."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import MissingDependency, UsageError
from orchestrator.news import Level
from orchestrator.notify.addresses import describe, how_to_set, split

# apprise names hosts and, on some levels, whole addresses; the others log paths and signatures.
_TALKATIVE = ("apprise", "urllib3.connectionpool", "requests_oauthlib.oauth1_auth")


@dataclass(frozen=True, slots=True)
class Address:
    """Where messages go to; `name` is what may be said of it."""

    name: str
    _service: Any

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def send(self, title: str, text: str, level: Level) -> bool:
        """Send a message and say whether the service took it; never raises.

        Takes at most 4 s for a connection (mail 15) and for each answer. The service itself is
        called: apprise.Apprise has threads of its own, for which a process that ends has to wait.
        """
        with _silence():
            try:
                sent = self._service.notify(
                    body=text, title=title, notify_type=level.value, body_format="text"
                )
            except Exception:  # noqa: BLE001  # any service's code; its words may hold the address
                return False
            return bool(sent)


def open_addresses(text: str) -> list[Address]:
    """Return the addresses in `text`.

    Raises:
        MissingDependency: apprise is not installed.
        UsageError: one is no address that apprise knows; its secret part is not repeated.
    """
    found = dict(_try_addresses(text))
    broken = [name for name, address in found.items() if address is None]
    if broken:
        raise UsageError(
            f"Notifications: {broken[0]} is not one that apprise can use here.",
            f"Write it as https://appriseit.com says. {how_to_set()}",
        )
    return [address for address in found.values() if address is not None]


def open_valid_addresses(text: str, log: logging.Logger) -> list[Address]:
    """Return the addresses that can be read; the others, or a lack of apprise, are only logged."""
    try:
        found = dict(_try_addresses(text))
    except MissingDependency as error:
        log.warning("nobody is notified: %s %s", error.what, error.next_step)
        return []
    for name, address in found.items():
        if address is None:
            log.warning("notifications: %s is not one that apprise can use here", name)
    return [address for address in found.values() if address is not None]


def _try_addresses(text: str) -> Iterator[tuple[str, Address | None]]:
    try:
        # 90 ms, and only where there are addresses.
        import apprise
    except ImportError as error:
        raise MissingDependency(
            "Notifications need apprise, which is not installed.",
            "pip install 'spot-orchestrator[notify]'",
        ) from error
    asset = _asset()
    for number, one in enumerate(split(text), start=1):
        name = describe(number, one)
        with _silence():
            service = apprise.Apprise.instantiate(one, asset=asset)  # None for any mistake in it
        yield name, None if service is None else Address(name, service)


def _asset() -> Any:  # noqa: ANN401  # apprise's
    import apprise

    # Nothing of it on disk, no plugins of the user's, and addresses masked wherever it says them.
    return apprise.AppriseAsset(
        app_id="orchestrate",
        app_desc="Spot orchestrator",
        app_url="",
        async_mode=False,
        plugin_paths=[],
        storage_mode=apprise.PersistentStoreMode.MEMORY,
        secure_logging=True,
    )


class _Elsewhere(logging.Filter):
    """Lets through what other threads say."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread


@contextlib.contextmanager
def _silence(names: Sequence[str] = _TALKATIVE) -> Iterator[None]:
    """Keep what libraries log of a message out of all logs, at every level."""
    silent, loggers = _Elsewhere(), [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(silent)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(silent)
