"""The metadata services of three clouds on loopback, as strict as theirs about headers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

AZURE_NAME = "node-1"


class MetadataService(ThreadingHTTPServer):
    """What the node is told; change it while it serves. `garbage` replaces every reply's body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spot_action: dict[str, str] | None = None
        self.rebalance: dict[str, str] | None = None
        self.is_preempted = False
        self.scheduled_events: list[dict[str, object]] = []
        self.garbage: bytes | None = None
        self.num_tokens = 0
        self.region, self.zone = "us-east-1", "us-east-1-a"
        self.instance_type, self.is_spot = "p4de.24xlarge", True

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def expire_token(self) -> None:
        """Have the service ask for a new token, which a client only learns from a 401."""
        self.num_tokens += 1

    @property
    def token(self) -> str:
        return f"token-{self.num_tokens}"


@contextmanager
def metadata_service() -> Iterator[MetadataService]:
    """Serve on loopback until the block ends."""
    with MetadataService() as service:
        Thread(target=service.serve_forever, args=(0.01,), daemon=True).start()
        yield service
        service.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: MetadataService

    def do_PUT(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token-ttl-seconds") is None:
            self._answer(400)
        else:
            self._answer(200, self.server.token.encode())

    def do_GET(self) -> None:  # noqa: C901  # a table of addresses
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        match url.path:
            case "/latest/meta-data/spot/instance-action":
                self._aws(self.server.spot_action)
            case "/latest/meta-data/events/recommendations/rebalance":
                self._aws(self.server.rebalance)
            case "/latest/meta-data/placement/region":
                self._aws(self.server.region)
            case "/latest/meta-data/placement/availability-zone":
                self._aws(self.server.zone)
            case "/latest/meta-data/instance-type":
                self._aws(self.server.instance_type)
            case "/latest/meta-data/instance-life-cycle":
                self._aws("spot" if self.server.is_spot else "on-demand")
            case "/computeMetadata/v1/instance/zone":
                self._google(f"projects/7/zones/{self.server.zone}")
            case "/computeMetadata/v1/instance/machine-type":
                self._google(f"projects/7/machineTypes/{self.server.instance_type}")
            case "/computeMetadata/v1/instance/scheduling/preemptible":
                self._google("TRUE" if self.server.is_spot else "FALSE")
            case "/computeMetadata/v1/instance/preempted":
                self._google("TRUE" if self.server.is_preempted else "FALSE")
            case "/metadata/scheduledevents" if query.get("api-version") == ["2020-07-01"]:
                events = {"DocumentIncarnation": 1, "Events": self.server.scheduled_events}
                self._azure(json.dumps(events).encode())
            case "/metadata/instance/compute" if "api-version" in query:
                place = {"location": self.server.region, "zone": self.server.zone}
                kind = {"vmSize": self.server.instance_type}
                priority = {"priority": "Spot" if self.server.is_spot else "Regular"}
                self._azure(json.dumps({**place, **kind, **priority}).encode())
            case "/metadata/instance/compute/name" if "api-version" in query:
                self._azure(AZURE_NAME.encode())
            case _:
                self._answer(404)

    def log_message(self, *_: object) -> None:
        pass

    def _google(self, text: str) -> None:
        is_right = self.headers.get("Metadata-Flavor") == "Google"
        self._answer(200 if is_right else 403, text.encode())

    def _aws(self, told: dict[str, str] | str | None) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != self.server.token:
            self._answer(401)
        elif told is None:
            self._answer(404)
        else:
            self._answer(200, (told if isinstance(told, str) else json.dumps(told)).encode())

    def _azure(self, body: bytes) -> None:
        self._answer(200 if self.headers.get("Metadata") == "true" else 400, body)

    def _answer(self, status: int, body: bytes = b"") -> None:
        if self.server.garbage is not None and status == 200:
            body = self.server.garbage
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
