"""JSON over HTTP over a Unix socket: the one way into a cell, whose network has no way out.

A socket's file is found from every network namespace, so tests outside of the cell and SkyPilot
inside of it ask the same daemon in the same words.
"""

from __future__ import annotations

import contextlib
import json
import os
import socketserver
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Thread

import httpx

from tests.cell.records import Record, Refusal

# A request for capacity may be made to wait before it is refused, a server takes half a minute.
_TIMEOUT_S = 600.0
_CONFLICT = 409

Answer = Record | Sequence[Record]
Routes = Mapping[str, tuple[type[Record], Callable[..., Answer]]]


class Refused(Exception):
    """The cloud has no room for what it was asked for."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Failed(Exception):
    """The daemon could not do what it was asked to."""


@contextlib.contextmanager
def _short(socket: Path) -> Iterator[str]:
    """Yield a name of the socket that fits into the 108 bytes which the kernel grants."""
    folder = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{socket.name}"
    finally:
        os.close(folder)


def ask(socket: Path, path: str, request: Record) -> bytes:
    """Return what the daemon answers.

    Raises:
        Refused: there is no capacity.
        Failed: it went wrong inside.
        httpx.HTTPError: the daemon is not there.
    """
    with (
        _short(socket) as name,
        httpx.Client(transport=httpx.HTTPTransport(uds=name), timeout=_TIMEOUT_S) as client,
    ):
        reply = client.post(f"http://cell{path}", content=request.model_dump_json())
    if reply.status_code == _CONFLICT:
        raise Refused(Refusal.model_validate_json(reply.content))
    if reply.is_error:
        raise Failed(Refusal.model_validate_json(reply.content).message)
    return reply.content


class ControlServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answer requests at the socket, each in a thread of its own."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, socket: Path, routes: Routes) -> None:
        self.routes = routes
        socket.unlink(missing_ok=True)
        with _short(socket) as name:
            super().__init__(name, _Handler)
        Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: ControlServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            kind, act = self.server.routes[self.path]
            answer = act(kind.model_validate_json(body))
        except Refused as refused:
            self._answer(_CONFLICT, refused.refusal)
        except Exception as error:  # noqa: BLE001 - told to the caller, whose fault it may be
            self._answer(500, Refusal(code=type(error).__name__, message=str(error)))
        else:
            self._answer(200, answer)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, answer: Answer) -> None:
        is_one = isinstance(answer, Record)
        told = (
            answer.model_dump(mode="json")
            if is_one
            else [x.model_dump(mode="json") for x in answer]
        )
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
