"""An S3 server that takes conditional writes for plain ones, as some that call themselves S3 do."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "loose"
_HEADERS = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
_ENTRY = (
    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<Size>{}</Size></Contents>"
)


class LooseServer(ThreadingHTTPServer):
    """The server, its objects by key, the `Authorization` of every request, and its connections.

    The next `num_to_cut` answers to a request for a range end in the middle.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.authorizations: list[str] = []
        self.connections: list[socket.socket] = []
        self.num_to_cut = 0
        self.num_presigned = 0
        self.refuses_deletes = False
        self.refuses_presigned = False
        self.hides_missing = False

    def close_connections(self) -> None:
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def loose_server() -> Iterator[LooseServer]:
    """Serve on loopback until the block ends."""
    with LooseServer() as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LooseServer

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        is_presigned = "X-Amz-Signature" in query
        self.server.num_presigned += is_presigned
        if is_presigned and self.server.refuses_presigned:
            self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        elif self._key() is None:
            self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        elif "list-type" in query:
            self._list(query.get("prefix", [""])[0])
        elif self._key() not in self.server.objects and self.server.hides_missing:
            self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        elif self._key() not in self.server.objects:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._answer_with(self.server.objects[self._key()])

    do_HEAD = do_GET

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self._key() is None:
            self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
            return
        self.server.objects[self._key()] = data
        self._answer(200, etag_of=data)

    def do_POST(self) -> None:
        """Delete the objects that the request names."""
        if self.server.refuses_deletes:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
            return
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        for key in re.findall("<Key>(.*?)</Key>", text):
            self.server.objects.pop(key, None)
        self._answer(200, b"<DeleteResult></DeleteResult>")

    def log_message(self, *_: object) -> None:
        pass

    def _key(self) -> str | None:
        """Return the key that the request names, None in another bucket."""
        bucket, _, key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        return key if bucket == BUCKET else None

    def _answer_with(self, data: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            self._answer(200, data)
            return
        start, last = int(wanted[1]), int(wanted[2])
        if start >= len(data):
            self._answer(416, b"<Error><Code>InvalidRange</Code></Error>")
            return
        self._answer(206, data[start : last + 1], content_range=(start, len(data)))

    def _list(self, prefix: str) -> None:
        found = [
            _ENTRY.format(key, len(data))
            for key, data in sorted(self.server.objects.items())
            if key.startswith(prefix)
        ]
        self._answer(200, f"<ListBucketResult>{''.join(found)}</ListBucketResult>".encode())

    def _answer(
        self,
        status: int,
        body: bytes = b"",
        etag_of: bytes | None = None,
        content_range: tuple[int, int] | None = None,
    ) -> None:
        self.server.authorizations.append(self.headers.get("Authorization", ""))
        digest = hashlib.md5(body if etag_of is None else etag_of).hexdigest()
        self.send_response(status)
        for name, value in {**_HEADERS, "ETag": f'"{digest}"'}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if content_range is not None:
            start, size = content_range
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{size}")
            if self.server.num_to_cut:
                self.server.num_to_cut -= 1
                self.close_connection = True
                body = body[: len(body) // 2]
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
