"""An OpenAI-compatible server on loopback that answers and judges as a test says, and counts."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "stub-key-0123456789"
Say = Callable[[dict[str, Any]], "str | tuple[int, dict[str, Any]] | None"]
"""Takes the body; returns the text, a status with a body, or None to never answer."""


class Stub:
    """What was asked, in order, and how it is answered."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.asked: list[dict[str, Any]] = []
        self.key: str | None = None
        self.headers: list[dict[str, str]] = []
        self.port = 0
        self.gone = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextlib.contextmanager
def serving(say: Say) -> Iterator[Stub]:
    """Serve until the end of the block."""
    stub = Stub(say)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [{"id": "stub", "object": "model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if stub.key is not None and self.headers["authorization"] != f"Bearer {stub.key}":
                self._send(401, {"error": {"message": "wrong key"}})
                return
            with stub.lock:
                stub.asked.append(body)
                stub.headers.append(dict(self.headers))
            said = stub.say(body)
            if said is None:
                stub.gone.wait()
                self.close_connection = True
            elif isinstance(said, tuple):
                self._send(*said)
            else:
                self._send(200, completion(said))

        def _send(self, status: int, document: dict[str, Any]) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            # A client that tries again does so at once.
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.gone.set()
        server.shutdown()
        server.server_close()


def completion(
    text: str, finish_reason: str = "stop", refusal: str | None = None
) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    return {
        "id": "one",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": "stub",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


def is_rating(body: dict[str, Any]) -> bool:
    """Say whether a judge is asked for scores, and not for a preference."""
    return "Rate the conversation" in body["messages"][0]["content"]


def rating(coherence: int = 4, relevance: int = 4, fluency: int = 4, engagement: int = 4) -> str:
    scores = {
        "coherence": coherence,
        "relevance": relevance,
        "fluency": fluency,
        "engagement": engagement,
    }
    return json.dumps({"explanation": "Because.", **scores})


def preference(better: str) -> str:
    return json.dumps({"explanation": "Because.", "better": better})
