"""An HTTP proxy on loopback in front of a real S3 server, which does to requests what it is told.

Signatures stay valid: the client signs for the proxy's address, and the Host header goes on as it
came. Every planned fault counts how often it fired; at the end all must have.
"""

from __future__ import annotations

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_CHUNK = 1024
_HOP_BY_HOP = ("connection", "expect", "keep-alive", "transfer-encoding", "content-length")
# Of SO_LINGER: closing sends RST, as a peer that lost its state does.
_RESET = struct.pack("ii", 1, 0)


class Act(Enum):
    """What becomes of a request."""

    REFUSE = "it is answered `status` with `code`, and not passed on"
    LOSE_REPLY = "it is passed on, and answered `status` with `code` all the same"
    DROP_REPLY = "it is passed on, and the connection closed instead of an answer"
    ERROR_IN_200 = "it is answered 200 with an error as its body, and not passed on"
    RESET = "the connection is reset in the middle of its body"
    SLOW = "its body is taken at `bytes_per_s`, and then it is passed on"
    SILENCE = "it is taken and never answered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a fault can be chosen by."""

    method: str
    path: str
    query: str
    headers: http.client.HTTPMessage

    @property
    def is_conditional(self) -> bool:
        """Say whether it writes only if nothing, or a certain version, is there."""
        return "If-Match" in self.headers or "If-None-Match" in self.headers


@dataclass(kw_only=True)
class Fault:
    """A planned fault: of the requests that `when` picks, the first `times`, or a share of all."""

    act: Act
    when: Callable[[Request], bool] = lambda request: True
    times: int | None = None
    rate: float = 1.0
    status: int = 503
    code: str = "SlowDown"
    bytes_per_s: int = 10_000
    num_fired: int = 0

    @property
    def is_used_up(self) -> bool:
        return self.times is not None and self.num_fired >= self.times


def writes(pattern: str) -> Callable[[Request], bool]:
    """Pick the requests that write an object, or a part of one, whose key matches `pattern`."""
    return lambda r: r.method in ("PUT", "POST") and re.search(pattern, r.path) is not None


def conditional(pattern: str) -> Callable[[Request], bool]:
    """Pick conditional writes of keys that match `pattern`."""
    return lambda r: r.is_conditional and writes(pattern)(r)


class FaultyProxy(ThreadingHTTPServer):
    """The proxy, its faults, and how many requests it has passed on unharmed."""

    daemon_threads = True

    def __init__(self, upstream: str, faults: Sequence[Fault], seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        # Small, or the kernel takes a whole save at once however slowly it is read.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.upstream = urlsplit(upstream).netloc
        self.faults = list(faults)
        self.num_unharmed = 0
        self.is_over = threading.Event()
        self._dice = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def choose(self, request: Request) -> Fault | None:
        """Return the first planned fault that meets this request, and count it."""
        with self._lock:
            for fault in self.faults:
                if fault.is_used_up or not fault.when(request):
                    continue
                if self._dice.random() < fault.rate:
                    fault.num_fired += 1
                    return fault
            self.num_unharmed += 1
            return None

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that went away: killing them is what tests do."""


@contextmanager
def faulty_proxy(upstream: str, *faults: Fault, seed: int = 0) -> Iterator[FaultyProxy]:
    """Serve until the block ends; every fault must have fired by then."""
    with FaultyProxy(upstream, faults, seed) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.is_over.set()
            proxy.shutdown()
        idle = [fault for fault in proxy.faults if not fault.num_fired]
        assert not idle, f"planned, but never fired: {idle}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def do(self) -> None:
        parts = urlsplit(self.path)
        request = Request(
            method=self.command, path=parts.path, query=parts.query, headers=self.headers
        )
        fault = self.server.choose(request)
        if fault is None:
            self._answer(*self._pass_on(self._body()))
            return
        match fault.act:
            case Act.REFUSE:
                self._body()
                self._say(fault.status, fault.code)
            case Act.ERROR_IN_200:
                self._body()
                self._say(200, fault.code)
            case Act.LOSE_REPLY:
                self._pass_on(self._body())
                self._say(fault.status, fault.code)
            case Act.DROP_REPLY:
                self._pass_on(self._body())
                self._break_off()
            case Act.RESET:
                self.rfile.read(self._length // 2)
                self._break_off()
            case Act.SLOW:
                self._answer(*self._pass_on(self._body(fault.bytes_per_s)))
            case Act.SILENCE:
                self._body()
                self.server.is_over.wait()
                self._break_off()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do

    def log_message(self, *_: object) -> None:
        pass

    @property
    def _length(self) -> int:
        return int(self.headers.get("Content-Length") or 0)

    def _body(self, bytes_per_s: int | None = None) -> bytes:
        if bytes_per_s is None:
            return self.rfile.read(self._length)
        taken = b""
        while len(taken) < self._length:
            chunk = self.rfile.read(min(_CHUNK, self._length - len(taken)))
            if not chunk or self.server.is_over.is_set():
                raise ConnectionAbortedError
            taken += chunk
            time.sleep(len(chunk) / bytes_per_s)
        return taken

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    upstream.putheader(name, value)
            if body or "Content-Length" in self.headers:
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body or None)
            reply = upstream.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            upstream.close()

    def _answer(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _say(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>as planned</Message></Error>"
        self._answer(status, [("Content-Type", "application/xml")], text.encode())

    def _break_off(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        # The file objects hold the descriptor: without this the peer hears of it much later.
        for file in (self.rfile, self.wfile):
            with suppress(OSError, ValueError):
                file.close()
        self.connection.close()
