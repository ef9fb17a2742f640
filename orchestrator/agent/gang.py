"""The nodes of one launch as a whole: who is there, who is gone, and how the attempt ended for all.

Node 0 leads: it claims the attempt, tells the others which one it is, collects their reports and
judges. Which launch it is, the others learn from it as well, so that nothing has to be derived from
what SkyPilot says (whose task ids, job numbers and addresses may repeat).
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from enum import Enum
from typing import Protocol

from orchestrator.agent.config import AgentConfig
from orchestrator.agent.outcomes import NodeReport, judge
from orchestrator.agent.peer import Ending, Hello, Message, Peer, Verdict, Welcome
from orchestrator.attempts import EndReason

_log = logging.getLogger(__name__)
# From the end of one node's ranks to the last report: the others notice, are killed, and upload.
SETTLE_S = 120.0
# How long the head waits for the others to have heard the verdict.
_DISMISS_S = 5.0
_POLL_S = 0.05


class News(str, Enum):
    """What has become of the other nodes."""

    NONE = "none"
    ENDED = "ended"  # the ranks of one have ended: ours will, too, or hang
    HUNG = "hung"  # those of one were killed for hanging
    LOST = "lost"  # one is gone without a word


class Gang(Protocol):
    """This node's view of the others."""

    def news(self) -> News:
        """Return what is known of the other nodes at this moment."""
        ...

    def tell_hang(self) -> None:
        """Say that this node's ranks hang, a moment before they are killed."""
        ...

    def settle(self, report: NodeReport) -> tuple[EndReason, str | None]:
        """Tell how this node's part ended; return how the attempt did, for all nodes alike."""
        ...

    def dismiss(self, reason: EndReason) -> None:
        """Let the others go: what they must not outrun is in the ledger."""
        ...


class Head:
    """Node 0's side; alone, where the launch has no other node."""

    def __init__(self, config: AgentConfig, run_id: str, welcome: Welcome) -> None:
        """Listen for the other nodes, on the address that they were given."""
        self._config, self._run_id, self._welcome = config, run_id, welcome
        self._give_up_at = time.monotonic() + config.join_seconds
        self._peers: dict[int, Peer] = {}
        self._reports: dict[int, NodeReport] = {}
        self._changing = threading.Lock()
        self._socket: socket.socket | None = None
        if config.num_nodes > 1:
            self._socket = _listen(config)
            args = (self._socket,)
            threading.Thread(target=self._accept, args=args, name="gang", daemon=True).start()

    def news(self) -> News:
        """Return what is known of the other nodes at this moment."""
        if self._lost() is not None:
            return News.LOST
        reports = list(self._reports.values())
        if any(report.is_hung for report in reports):
            return News.HUNG
        return News.ENDED if reports else News.NONE

    def tell_hang(self) -> None:
        """Have the others keep their stacks: the rank that all wait for may be one of theirs."""
        for peer in self._peers.values():
            peer.send(Ending(is_hung=True))

    def settle(self, report: NodeReport) -> tuple[EndReason, str | None]:
        """Collect the others' reports, as far as they still come, and judge."""
        for peer in self._peers.values():
            peer.send(Ending(is_hung=report.is_hung))
        give_up_at = time.monotonic() + SETTLE_S
        while len(self._reports) < self._config.num_nodes - 1 and self._lost() is None:
            if time.monotonic() > give_up_at:
                break
            time.sleep(_POLL_S)
        lost = self._lost() or self._missing()
        return judge([report, *self._reports.values()], lost)

    def dismiss(self, reason: EndReason) -> None:
        """Tell the verdict and wait until it is heard: SkyPilot kills what it finds after us."""
        for peer in self._peers.values():
            peer.send(Verdict(reason=reason))
        give_up_at = time.monotonic() + _DISMISS_S
        while any(not peer.is_lost for peer in self._peers.values()):
            if time.monotonic() > give_up_at:
                break
            time.sleep(_POLL_S)
        for peer in self._peers.values():
            peer.close()
        if self._socket is not None:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._socket.close()

    def _lost(self) -> str | None:
        for node, peer in list(self._peers.items()):
            if node not in self._reports and peer.is_lost:
                return f"node {node} of {self._config.num_nodes} is gone"
        if time.monotonic() > self._give_up_at and len(self._peers) < self._config.num_nodes - 1:
            return self._missing()
        return None

    def _missing(self) -> str | None:
        silent = [n for n in range(1, self._config.num_nodes) if n not in self._reports]
        return f"no word from node {silent[0]} of {self._config.num_nodes}" if silent else None

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            Peer(connection, self._hear)

    def _hear(self, peer: Peer, message: Message) -> None:
        if isinstance(message, Hello):
            self._admit(peer, message)
        elif isinstance(message, NodeReport) and self._peers.get(message.node) is peer:
            self._reports[message.node] = message

    def _admit(self, peer: Peer, hello: Hello) -> None:
        with self._changing:
            is_free = 0 < hello.node < self._config.num_nodes and hello.node not in self._peers
            is_ours = hello.run_id == self._run_id and hello.launch in ("", self._welcome.launch)
            if not (is_ours and is_free):
                _log.warning("turned away node %d of run %s", hello.node, hello.run_id)
                peer.close()
                return
            self._peers[hello.node] = peer
        peer.send(self._welcome)


def _listen(config: AgentConfig) -> socket.socket:
    """Listen where the others look; on every address where theirs is not one of ours (NAT)."""
    try:
        return socket.create_server((config.head, config.port + 1))
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
    return socket.create_server(("", config.port + 1))
