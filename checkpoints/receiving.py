"""Receive bytes of S3 objects straight into memory, through the standard library's HTTP client.

obstore collects them in memory of its own, to be copied from there, which takes twice the processor
time, also with TLS (docs/checkpoints.md). It is asked wherever this did not work, and then retries
and tells what is wrong.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

log = logging.getLogger(__name__)

# Without a byte for so long, a connection is given up, and a request that is not through by then.
_TIMEOUT_S = 15.0
_REQUEST_S = 60.0
# Between looks at the clock.
_PIECE_BYTES = 1024 * 1024
# Answers about the object; others, such as refusals, would come every time.
_ABOUT_OBJECT = (
    HTTPStatus.PARTIAL_CONTENT,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
)
# Used at once; the rest is for clocks that differ.
_SIGNED_FOR = timedelta(minutes=15)


class Receiver:
    """Requests to one bucket, from any number of threads, on connections that are used again."""

    def __init__(self, client: S3Store) -> None:
        self._client = client
        self._idle: deque[HTTPConnection] = deque()
        self._has_worked = False
        # The standard library's client knows no proxies.
        self._is_usable = not getproxies().keys() & {"http", "https", "all"}
        weakref.finalize(self, _close_all, self._idle)

    def receive(self, path: str, start: int, buffers: Sequence[memoryview]) -> bool:
        """Fill the buffers with the object's bytes from `start` on; return whether that worked."""
        if not self._is_usable:
            return False
        try:
            url = urlsplit(obstore.sign(self._client, "GET", path, _SIGNED_FOR))
            connection = self._connection(url)
        except (BaseError, OSError) as error:
            log.info("no connection for %s: %s", path, error)
            self._is_usable = self._has_worked
            return False
        try:
            self._request(connection, url, start, buffers)
        except (OSError, HTTPException) as error:
            log.info("bytes of %s are asked for again: %s", path, error)
            connection.close()
            return False
        self._has_worked = True
        self._idle.append(connection)
        return True

    def _connection(self, url: SplitResult) -> HTTPConnection:
        try:
            return self._idle.pop()
        except IndexError:
            kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
            connection = kind(url.netloc, timeout=_TIMEOUT_S)
            connection.connect()
            return connection

    def _request(
        self,
        connection: HTTPConnection,
        url: SplitResult,
        start: int,
        buffers: Sequence[memoryview],
    ) -> None:
        give_up_at = time.monotonic() + _REQUEST_S
        num_bytes = sum(len(buffer) for buffer in buffers)
        wanted = {"Range": f"bytes={start}-{start + num_bytes - 1}"}
        connection.request("GET", f"{url.path}?{url.query}", headers=wanted)
        response = connection.getresponse()
        if response.status != HTTPStatus.PARTIAL_CONTENT or response.length != num_bytes:
            if response.status < 500 and response.status not in _ABOUT_OBJECT:
                self._is_usable = self._has_worked
            raise HTTPException(f"{response.status} {response.reason}, {response.length} bytes")
        for buffer in buffers:
            _fill(response, buffer, give_up_at)


def _fill(response: HTTPResponse, buffer: memoryview, give_up_at: float) -> None:
    while buffer:
        num_bytes = response.readinto(buffer[:_PIECE_BYTES])
        if not num_bytes:
            raise HTTPException("The connection ended")
        if time.monotonic() > give_up_at:
            raise HTTPException(f"It took more than {_REQUEST_S:g} s")
        buffer = buffer[num_bytes:]


def _close_all(connections: deque[HTTPConnection]) -> None:
    for connection in connections:
        connection.close()
