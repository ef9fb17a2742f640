"""One connection between the agents of two nodes: lines of JSON both ways, and a beat in between.

A process that dies closes it at once; a machine that vanishes says nothing, and is missed after a
while. Nothing that is read from it is ever executed or unpickled.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from orchestrator.agent.outcomes import NodeReport
from orchestrator.attempts import EndReason
from train.config import TrainConfig

_log = logging.getLogger(__name__)
_BEAT_S = 1.0
# A vanished machine is noticed within this time: well before the ranks would be taken for hung, and
# long after any pause of a process that is well.
SILENCE_S = 30.0
# A TrainConfig, with the preemptions of a long run.
_LONGEST_LINE = 1 << 20


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hello(_Message):
    """A node's first words to the head; run and launch keep strangers out."""

    kind: Literal["hello"] = "hello"
    run_id: str
    launch: str
    """Empty where only the head knows."""
    node: int


class Welcome(_Message):
    """The head's answer: which attempt this is, and what all ranks must be told alike."""

    kind: Literal["welcome"] = "welcome"
    launch: str
    attempt: int
    train: TrainConfig


class Beat(_Message):
    """I live."""

    kind: Literal["beat"] = "beat"


class Ending(_Message):
    """The head's own ranks have ended."""

    kind: Literal["ending"] = "ending"
    is_hung: bool


class Verdict(_Message):
    """How the attempt ended, on all nodes alike; it is in the ledger."""

    kind: Literal["verdict"] = "verdict"
    reason: EndReason


Message = Hello | Welcome | Beat | Ending | NodeReport | Verdict
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


class Peer:
    """The other end of a connection."""

    def __init__(self, connection: socket.socket, hear: Callable[[Peer, Message], None]) -> None:
        """Start to beat and to listen; `hear` is called for each message, in a thread."""
        self._connection = connection
        self._hear = hear
        self._sending = threading.Lock()
        self._heard_at = time.monotonic()
        self._is_closed = False
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for run in (self._listen, self._beat):
            threading.Thread(target=run, name="peer", daemon=True).start()

    @property
    def is_lost(self) -> bool:
        """Say whether nothing more is to be expected of it."""
        return self._is_closed or time.monotonic() - self._heard_at > SILENCE_S

    def send(self, message: Message) -> None:
        """Send a message; to a peer that is gone it makes no difference."""
        try:
            with self._sending:
                self._connection.sendall(message.model_dump_json().encode() + b"\n")
        except OSError:
            self._is_closed = True

    def close(self) -> None:
        """End the connection; the other side sees it at once."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # the listening thread then closes it

    def _beat(self) -> None:
        pause = threading.Event()
        while not self._is_closed:
            self.send(Beat())
            pause.wait(_BEAT_S)

    def _listen(self) -> None:
        try:
            with self._connection.makefile("rb") as lines:
                while line := lines.readline(_LONGEST_LINE):
                    self._heard_at = time.monotonic()
                    message = _MESSAGE.validate_json(line)
                    if not isinstance(message, Beat):
                        self._hear(self, message)
        except (OSError, ValueError) as error:
            if not self._is_closed:
                _log.warning("the connection to another node's agent broke: %s", error)
        finally:
            self._is_closed = True
            self._connection.close()
