"""A launch's gang as every node but the first sees it: one connection, to node 0."""

from __future__ import annotations

import logging
import socket
import threading
import time

from orchestrator.agent.config import AgentConfig
from orchestrator.agent.gang import SETTLE_S, News
from orchestrator.agent.outcomes import NodeReport, judge
from orchestrator.agent.peer import Ending, Hello, Message, Peer, Verdict, Welcome
from orchestrator.attempts import EndReason

_log = logging.getLogger(__name__)
_RETRY_S = 0.5
_CONNECT_S = 5.0
_POLL_S = 0.05


class HeadMissing(Exception):
    """Node 0 did not answer."""


class Member:
    """The side of every other node."""

    def __init__(self, config: AgentConfig, run_id: str) -> None:
        """Find the head and wait until it has claimed the attempt.

        Raises:
            HeadMissing: it did not within the time that the nodes wait for one another.
        """
        self._config = config
        self._welcomed = threading.Event()
        self._ending: Ending | None = None
        self._verdict: Verdict | None = None
        give_up_at = time.monotonic() + config.join_seconds
        while not self._join(run_id, give_up_at):
            if time.monotonic() > give_up_at:
                raise HeadMissing(
                    f"node 0 at {config.head}:{config.port + 1} did not answer node {config.node} "
                    f"within {config.join_seconds:g} s: see its log, or a firewall divides them"
                )
            time.sleep(_RETRY_S)

    def news(self) -> News:
        """Return what is known of the other nodes at this moment."""
        if self._head.is_lost:
            return News.LOST
        if self._ending is None:
            return News.NONE
        return News.HUNG if self._ending.is_hung else News.ENDED

    def tell_hang(self) -> None:
        """Leave it to the report: the head's own watch is the stricter one."""

    def settle(self, report: NodeReport) -> tuple[EndReason, str | None]:
        """Report, and wait for the verdict: leaving earlier would have SkyPilot kill the head."""
        self._head.send(report)
        give_up_at = time.monotonic() + SETTLE_S
        while self._verdict is None:
            if self._head.is_lost or time.monotonic() > give_up_at:
                return judge([report], "node 0 is gone")
            time.sleep(_POLL_S)
        return self._verdict.reason, None

    def dismiss(self, reason: EndReason) -> None:
        """Leave."""
        _log.info("node %d leaves: %s", self._config.node, reason.value)
        self._head.close()

    def _join(self, run_id: str, give_up_at: float) -> bool:
        try:
            address = (self._config.head, self._config.port + 1)
            connection = socket.create_connection(address, _CONNECT_S)
        except OSError:
            return False
        connection.settimeout(None)
        self._head = Peer(connection, self._hear)
        self._head.send(Hello(run_id=run_id, launch=self._config.launch, node=self._config.node))
        while not self._welcomed.wait(_POLL_S):
            if self._head.is_lost or time.monotonic() > give_up_at:
                self._head.close()
                return False
        return True

    @property
    def welcome(self) -> Welcome:
        """What the head told this node to do."""
        return self._welcome

    def _hear(self, _: Peer, message: Message) -> None:
        if isinstance(message, Welcome):
            self._welcome = message
            self._welcomed.set()
        elif isinstance(message, Ending):
            self._ending = message
        elif isinstance(message, Verdict):
            self._verdict = message
