"""A server of the OpenAI API on loopback: what tests need of one, and what may go wrong with one.

Answers are made of the question: its words, one a chunk. Some questions have answers of their own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CUT, ENDLESS, LONG, SILENT, BROKEN = "cut", "endless", "long", "silent", "broken"


@dataclass
class OpenAIService:
    """What the server has, and what it was asked."""

    models: list[str] = field(default_factory=lambda: ["tiny"])
    key: str | None = None
    odd_answer: str | None = None
    """Text of the answer to anything but the questions that have answers of their own."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    was_left: threading.Event = field(default_factory=threading.Event)
    """Set when a client leaves in the middle of an answer."""
    url: str = ""


@contextmanager
def openai_service(**options: Any) -> Iterator[OpenAIService]:
    """Yield a server at a free port."""
    service = OpenAIService(**options)

    class Handler(_Handler):
        pass

    Handler.service = service
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: OpenAIService

    def do_GET(self) -> None:
        if self._is_let_in():
            models = [{"id": name, "object": "model"} for name in self.service.models]
            self._send(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_let_in():
            return
        self.service.requests.append(asked)
        if asked["model"] not in self.service.models:
            self._send(404, {"error": {"message": f"There is no model {asked['model']}."}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self._answer(asked)
        except OSError:
            self.service.was_left.set()
            self.close_connection = True

    def _answer(self, asked: dict[str, Any]) -> None:
        content = asked["messages"][-1]["content"]
        question = content if isinstance(content, str) else content[0]["text"]
        if question == ENDLESS:
            while not self.service.was_left.wait(0.01):
                self._chunk(content="on ")
        if question == SILENT:
            self._chunk(finish_reason="stop")
        elif question == BROKEN:
            self._event('{"error": {"message": "out of memory"}}')
        else:
            for word in (self.service.odd_answer or f"You said: {question}").split(" "):
                self._chunk(content=f"{word} ")
            if question == CUT:
                # No last chunk: the connection just ends.
                self.close_connection = True
                return
            self._chunk(finish_reason="length" if question == LONG else "stop")
        self._event("[DONE]")
        self._write(b"")

    def _chunk(self, content: str | None = None, finish_reason: str | None = None) -> None:
        delta = {} if content is None else {"role": "assistant", "content": content}
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "tiny"}
        self._event(json.dumps({**chunk, "choices": [choice]}))

    def _event(self, text: str) -> None:
        self._write(f"data: {text}\n\n".encode())

    def _write(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _is_let_in(self) -> bool:
        self.service.headers.append(dict(self.headers))
        if self.service.key in (None, self.headers["Authorization"].removeprefix("Bearer ")):
            return True
        self._send(401, {"error": {"message": "This key is not known."}})
        return False

    def _send(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""
