"""A replica's port: what it passes on, what it says itself, and how it ends."""

from __future__ import annotations

import http.server
import threading

import httpx
import pytest

from orchestrator.serving.front import Front


class Streaming(http.server.BaseHTTPRequestHandler):
    """Answers in two parts, the second when the test allows it; GETs at once."""

    protocol_version = "HTTP/1.1"
    may_end = threading.Event()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(2 * len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self.may_end.wait(10)
        self.wfile.write(body)

    def do_GET(self):
        said = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


@pytest.fixture
def router():
    Streaming.may_end.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Streaming) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def ready():
    return threading.Event()


@pytest.fixture
def front(router, ready):
    made = Front(0, router, ready.is_set)
    yield made
    made.close()


def url(front: Front, path: str = "/v1/models") -> str:
    return f"http://127.0.0.1:{front.port}{path}"


def test_readiness_is_its_own_and_all_else_is_the_routers(front, ready):
    assert httpx.get(url(front, "/readiness")).status_code == 503
    assert httpx.get(url(front)).text == "/v1/models"  # a replica that is to leave answers still
    ready.set()
    assert httpx.get(url(front, "/readiness")).status_code == 200


def test_one_connection_carries_many_requests(front):
    with httpx.Client() as client:
        assert [client.get(url(front, f"/{n}")).text for n in range(3)] == ["/0", "/1", "/2"]


def test_an_answer_that_runs_is_finished_and_no_connection_is_taken_any_more(front):
    address = url(front)
    with httpx.stream("POST", address, content=b"x" * 100_000) as answer:
        parts = answer.iter_bytes()
        got = len(next(parts))
        front.refuse()
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)
        Streaming.may_end.set()
        got += sum(map(len, parts))
    assert got == 200_000


def test_a_router_that_is_gone_is_a_connection_that_ends(ready):
    front = Front(0, 1, ready.is_set)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(url(front))
    front.close()
