"""A service on loopback that messages are posted to, which may refuse them or never answer."""

from __future__ import annotations

import contextlib
import json
import socketserver
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SECRET = "s3cr3t-t0ken-0f-th1s-webh00k"


class MessageService:
    """What was posted, in order; `status` is what it answers, `hangs` that it answers nothing."""

    def __init__(self) -> None:
        self.port = 0
        self.posted: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.status = 200
        self.hangs = False
        self.num_refused = 0
        self.gone = threading.Event()
        self.copy: Path | None = None
        """A file that gets each title as well, for whoever is in another process."""

    def take(self, path: str, posted: dict[str, Any]) -> None:
        self.paths.append(path)
        self.posted.append(posted)
        if self.copy is not None:
            with self.copy.open("a") as file:
                file.write(f"{posted['title']}\n")

    @property
    def address(self) -> str:
        """As apprise reads it; the path is what a webhook keeps secret."""
        return f"json://user:{SECRET}@127.0.0.1:{self.port}/{SECRET}"

    @property
    def slack_like(self) -> str:
        """Mattermost, whose incoming webhooks are Slack's."""
        return f"mmost://127.0.0.1:{self.port}/{'z' * 24}"

    @property
    def titles(self) -> list[str]:
        return [one["title"] for one in self.posted]

    @property
    def texts(self) -> list[str]:
        return [one["message"] for one in self.posted]


@contextlib.contextmanager
def receiving(host: str = "127.0.0.1", port: int = 0) -> Iterator[MessageService]:
    """Serve until the end of the block."""
    service = MessageService()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if service.hangs:
                service.gone.wait(60)
            elif service.status == 200:
                service.take(self.path, json.loads(body))
            else:
                service.num_refused += 1
            with contextlib.suppress(OSError):
                self.send_response(service.status)
                self.end_headers()
                self.wfile.write(b"ok")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    service.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.gone.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def receiving_mail() -> Iterator[tuple[str, list[str]]]:
    """Be a mail server until the end of the block; yields an address and the mails it has got."""
    mails: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.say("220 here")
            while line := self.rfile.readline().decode().upper():
                if line.startswith("DATA"):
                    self.say("354 go on")
                    mails.append(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
                self.say("221 bye" if line.startswith("QUIT") else "250 ok")

        def say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        port = server.server_address[1]
        yield f"mailto://127.0.0.1:{port}?from=run@example.com&to=me@example.com", mails
        server.shutdown()
        thread.join()


if __name__ == "__main__":  # HOST PORT FILE
    with receiving(sys.argv[1], int(sys.argv[2])) as serving:
        serving.copy = Path(sys.argv[3])
        serving.gone.wait()
