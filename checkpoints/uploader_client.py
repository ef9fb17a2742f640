"""A rank's connection to its node's uploader, and (on the node's first rank) that process itself.

The listening socket belongs to the first rank and is handed down, so that an uploader that died is
replaced under the same address.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle

from pydantic import TypeAdapter

from checkpoints import messages
from checkpoints.errors import SaveFailed
from checkpoints.messages import Attach, Commit, Committed, Refusal, Upload, Uploaded, send
from checkpoints.staging import StagingBuffer

UPLOADER = (sys.executable, "-m", "checkpoints.uploader")

_REPLY: TypeAdapter[Uploaded | Committed | Refusal] = TypeAdapter(messages.Reply)


def listen() -> tuple[socket.socket, bytes]:
    """Return a listening socket and its address, which no file stands for."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(b"")  # the kernel chooses a name in the abstract namespace, unix(7)
    listener.listen(64)
    address: bytes = listener.getsockname()
    return listener, address


class UploaderClient:
    """One rank's way to the uploader; used by one thread at a time."""

    def __init__(
        self,
        address: bytes,
        listener: socket.socket | None,
        command: Sequence[str],
        store_urls: Sequence[str],
    ) -> None:
        self._address = address
        self._listener = listener  # None: another rank of the node starts the process
        self._command = [*command]
        self._store_urls = [*store_urls]
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._attached: StagingBuffer | None = None

    def attach(self, buffer: StagingBuffer) -> None:
        """Make sure that an uploader is there and has this memory; raises OSError."""
        if self._listener is not None and (
            self._process is None or self._process.poll() is not None
        ):
            self._start(self._listener)
        if self._connection is not None and self._connection.poll():
            self._disconnect()  # readable out of turn: it was closed
        if self._connection is None:
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(self._address)
            self._connection = Connection(peer.detach())
        if self._attached is not buffer:
            send(self._connection, Attach(num_bytes=buffer.num_bytes))
            send_handle(self._connection, buffer.fd, None)
            self._attached = buffer

    def ask(
        self, request: Upload | Commit, *, parts: Sequence[bytes] = (), give_up_at: float
    ) -> Uploaded | Committed | Refusal:
        """Return the answer, at the latest at `give_up_at` (monotonic seconds).

        Raises SaveFailed when there is none. The node's first rank then ends the uploader, and
        starts another for the next request; the other ranks only connect anew.
        """
        assert self._connection is not None, "attach first"
        try:
            send(self._connection, request)
            for part in parts:
                self._connection.send_bytes(part)
            if self._connection.poll(max(0.0, give_up_at - time.monotonic())):
                return _REPLY.validate_json(self._connection.recv_bytes())
        except (OSError, EOFError) as error:
            self.reset()
            raise SaveFailed("The uploader process ended", "Read the attempt's log.") from error
        self.reset()
        raise SaveFailed(
            "The store did not take the data before the save's deadline",
            "Check the network to the store.",
        )

    def reset(self) -> None:
        """Drop the connection, and end the process where it was started."""
        self._disconnect()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None

    def close(self) -> None:
        """End the uploader for good."""
        self.reset()
        if self._listener is not None:
            self._listener.close()

    def _start(self, listener: socket.socket) -> None:
        # Its standard input is the sign of life of this process: no orphan goes on uploading.
        self._process = subprocess.Popen(
            [*self._command, str(listener.fileno()), *self._store_urls],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        )

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()
        self._connection = self._attached = None
