"""A W&B server on loopback: as much of its API as the client needs, or one way of failing."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = {"id": "e", "name": "us"}
PROJECT = {"id": "p", "name": "tests", "entity": ENTITY}


class Service:
    """What was asked of the server, and what it has been told of the one run that it knows."""

    def __init__(self) -> None:
        self.url = ""
        self.asked = threading.Event()
        self.gone = threading.Event()
        self.lines: dict[int, str] = {}
        """History by line number, as file_stream posts it."""
        self.posted_twice: set[int] = set()
        self.alerts: list[str] = []
        self.num_spoiled = 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(self.lines[number]) for number in sorted(self.lines)]

    def answer(self, path: str, body: bytes) -> bytes:
        """Answer as W&B does; queries are told apart by their operation."""
        if path != "/graphql":
            if path.endswith("/file_stream"):
                self._take(json.loads(body))
            return b"{}"
        query = json.loads(body)
        named = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])
        fields = self._data(named[1] if named else "", query.get("variables") or {})
        return json.dumps({"data": fields}).encode()

    def _data(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if operation == "RunResumeStatus":
            return {"model": {**PROJECT, "bucket": self._bucket() if self.lines else None}}
        if operation == "UpsertBucket":
            bucket = {"id": "r", "name": "demo-1", "displayName": "demo", "project": PROJECT}
            return {"upsertBucket": {"bucket": bucket, "inserted": not self.lines}}
        if operation == "CreateRunFiles":
            files = [{"name": one, "uploadUrl": f"{self.url}/{one}"} for one in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if operation == "NotifyScriptableRunAlert":
            self.alerts.append(variables["title"])
            return {"notifyScriptableRunAlert": {"success": True}}
        return {"serverInfo": {"features": []}}

    def _bucket(self) -> dict[str, Any]:
        last = self.lines[max(self.lines)]
        told = {name: value for row in self.rows for name, value in row.items()}
        return {
            "id": "r",
            "name": "demo-1",
            "displayName": "demo",
            "summaryMetrics": json.dumps(told),
            "historyTail": json.dumps([last]),
            "historyLineCount": len(self.lines),
            "eventsTail": "[]",
            "eventsLineCount": 0,
            "logLineCount": 0,
            "config": "{}",
            "wandbConfig": '{"t": 1}',
            "tags": [],
        }

    def _take(self, posted: dict[str, Any]) -> None:
        history = (posted.get("files") or {}).get("wandb-history.jsonl")
        if history is None:
            return
        for number, line in enumerate(history["content"], history["offset"]):
            self.posted_twice |= {number} & self.lines.keys()
            self.lines[number] = line


@contextlib.contextmanager
def serving(
    raw: Callable[[Service], bytes | None] | None = None, *, takes_history: bool = True
) -> Iterator[Service]:
    """Serve W&B's API; `raw` writes something else on the wire, None closes the connection."""
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            service.asked.set()
            self.close_connection = True
            if raw is not None:
                service.num_spoiled += 1
                self.wfile.write(raw(service) or b"")
                return
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            is_refused = self.path.endswith("/file_stream") and not takes_history
            answer = b"{}" if is_refused else service.answer(self.path, body)
            self.send_response(404 if is_refused else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PUT = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    service.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield service
    finally:
        service.gone.set()
        server.shutdown()
        server.server_close()
