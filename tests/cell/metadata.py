"""The metadata services of AWS, Google and Azure at 169.254.169.254, as each node sees them.

One server for all nodes, as in a cloud: who asks is told by the address that the question comes
from. A node is answered by its own cloud's service only, with that service's rules about headers.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from datetime import datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

from tests.cell.records import Instance

# The role that every node has: what it may do is not told apart.
_ROLES, _ROLE = "meta-data/iam/security-credentials", "cell-node"
_KEYS_OF_ROLE = {
    "Code": "Success",
    "Type": "AWS-HMAC",
    "AccessKeyId": "ASIACELL",
    "SecretAccessKey": "cell",  # pragma: allowlist secret
    "Token": "cell",
    "LastUpdated": "2026-01-01T00:00:00Z",
    "Expiration": "2099-01-01T00:00:00Z",
}
Find = Callable[[str], Instance | None]


class MetadataServer(ThreadingHTTPServer):
    """Answer the instances that `find` knows by their addresses."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], find: Find) -> None:
        super().__init__(address, _Handler)
        self.find = find
        self.tokens: dict[str, str] = {}
        Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


def aws_answers(instance: Instance) -> dict[str, str | None]:
    """Return what AWS' service has below /latest/; None is not there yet."""
    deadline = _utc(instance.deadline)
    action = deadline and json.dumps({"action": "terminate", "time": deadline})
    warned = _utc(instance.warned)
    identity = {
        "region": instance.region,
        "availabilityZone": instance.zone,
        "instanceId": instance.id,
        "instanceType": instance.instance_type,
        "privateIp": instance.ip,
    }
    return {
        "meta-data/instance-id": instance.id,
        "meta-data/instance-type": instance.instance_type,
        "meta-data/instance-life-cycle": "spot" if instance.spot else "on-demand",
        "meta-data/local-ipv4": instance.ip,
        "meta-data/placement/region": instance.region,
        "meta-data/placement/availability-zone": instance.zone,
        "meta-data/spot/instance-action": action if instance.spot else None,
        "meta-data/spot/termination-time": deadline if instance.spot else None,
        f"{_ROLES}/": _ROLE,
        f"{_ROLES}/{_ROLE}": json.dumps(_KEYS_OF_ROLE),
        "meta-data/events/recommendations/rebalance": warned and json.dumps({"noticeTime": warned}),
        "dynamic/instance-identity/document": json.dumps(identity),
    }


def google_answers(instance: Instance) -> dict[str, str | None]:
    """Return what Google's service has below /computeMetadata/v1/instance/."""
    kind = f"projects/0/machineTypes/{instance.instance_type}"
    return {
        "preempted": "TRUE" if instance.deadline else "FALSE",
        "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE" if instance.warned else "NONE",
        "zone": f"projects/0/zones/{instance.zone}",
        "machine-type": kind,
        "id": str(int(instance.id.removeprefix("i-"), 16)),
        "name": instance.id,
        "scheduling/preemptible": "TRUE" if instance.spot else "FALSE",
    }


def azure_events(instance: Instance) -> dict[str, object]:
    """Return Azure's scheduled events: an eviction where one was announced."""
    event = instance.deadline and {
        "EventId": f"event-{instance.id}",
        "EventType": "Preempt",
        "EventStatus": "Scheduled",
        "ResourceType": "VirtualMachine",
        "Resources": [instance.id],
        "NotBefore": format_datetime(instance.deadline, usegmt=True),
    }
    return {"DocumentIncarnation": 1 if event else 0, "Events": [event] if event else []}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: MetadataServer

    def do_PUT(self) -> None:
        instance = self._caller()
        if instance is None or instance.cloud != "aws" or self.path != "/latest/api/token":
            self._answer(404)
        elif self.headers.get("X-aws-ec2-metadata-token-ttl-seconds") is None:
            self._answer(400)
        else:
            token = self.server.tokens.setdefault(instance.id, secrets.token_hex(16))
            self._answer(200, token)

    def do_GET(self) -> None:
        instance = self._caller()
        url = urlsplit(self.path)
        match instance and instance.cloud:
            case "aws":
                self._aws(instance, url.path)
            case "gcp":
                self._google(instance, url.path)
            case "azure":
                self._azure(instance, url.path, parse_qs(url.query))
            case _:
                self._answer(404)

    def log_message(self, *_: object) -> None:
        pass

    def _caller(self) -> Instance | None:
        return self.server.find(self.client_address[0])

    def _aws(self, instance: Instance, path: str) -> None:
        token = self.server.tokens.get(instance.id)
        if token is None or self.headers.get("X-aws-ec2-metadata-token") != token:
            self._answer(401)
        else:
            self._answer_if_any(aws_answers(instance).get(path.removeprefix("/latest/")))

    def _google(self, instance: Instance, path: str) -> None:
        if self.headers.get("Metadata-Flavor") != "Google":
            self._answer(403)
        else:
            name = path.removeprefix("/computeMetadata/v1/instance/")
            self._answer_if_any(google_answers(instance).get(name))

    def _azure(self, instance: Instance, path: str, query: dict[str, list[str]]) -> None:
        if self.headers.get("Metadata") != "true" or "api-version" not in query:
            self._answer(400)
        elif path == "/metadata/scheduledevents":
            self._answer(200, json.dumps(azure_events(instance)))
        else:
            is_name = path == "/metadata/instance/compute/name"
            self._answer_if_any(instance.id if is_name else None)

    def _answer_if_any(self, text: str | None) -> None:
        self._answer(404) if text is None else self._answer(200, text)

    def _answer(self, status: int, text: str = "") -> None:
        body = text.encode()
        self.send_response(status)
        # Google's clients tell their cloud by it.
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _utc(at: datetime | None) -> str | None:
    return at and at.strftime("%Y-%m-%dT%H:%M:%SZ")
