"""EC2's spot prices and EC2's quotas on loopback, for real boto3 clients to ask."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

_REGION = re.compile(r"Credential=[^/]+/\d+/([a-z0-9-]+)/(?:ec2|servicequotas)/")


@dataclass
class Ec2Service:
    """What it says; `prices` by region: (zone, zone id, instance type, price)."""

    endpoint: str = ""
    prices: dict[str, list[tuple[str, str | None, str, str]]] = field(default_factory=dict)
    quotas: dict[tuple[str, str], float] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


@contextmanager
def ec2_service() -> Iterator[Ec2Service]:
    service = Ec2Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            found = _REGION.search(self.headers["Authorization"])
            assert found is not None
            region = found[1]
            service.asked.append(region)
            if region in service.silent:
                service.released.wait(30)
                return
            is_quota = "X-Amz-Target" in self.headers
            status, text = (_quota if is_quota else _prices)(service, region, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield service
    service.released.set()
    server.shutdown()
    server.server_close()


def _prices(service: Ec2Service, region: str, body: str) -> tuple[int, str]:
    asked = parse_qs(body)
    assert asked["Action"] == ["DescribeSpotPriceHistory"]
    assert asked["ProductDescription.1"] == ["Linux/UNIX"]
    if region in service.refused:
        code = "<Code>UnauthorizedOperation</Code><Message>no</Message>"
        return 403, f"<Response><Errors><Error>{code}</Error></Errors></Response>"
    rows = "".join(
        f"<item><instanceType>{kind}</instanceType><spotPrice>{price}</spotPrice>"
        f"<availabilityZone>{zone}</availabilityZone>"
        + (f"<availabilityZoneId>{zone_id}</availabilityZoneId>" if zone_id else "")
        + "<productDescription>Linux/UNIX</productDescription>"
        f"<timestamp>2026-11-22T1{number}:00:00.000Z</timestamp></item>"
        for number, (zone, zone_id, kind, price) in enumerate(service.prices.get(region, ()))
        if kind == asked["InstanceType.1"][0]
    )
    name = "DescribeSpotPriceHistoryResponse"
    return 200, f"<{name}><spotPriceHistorySet>{rows}</spotPriceHistorySet></{name}>"


def _quota(service: Ec2Service, region: str, body: str) -> tuple[int, str]:
    code = json.loads(body)["QuotaCode"]
    value = service.quotas.get((region, code))
    if value is None:
        return 400, json.dumps({"__type": "NoSuchResourceException", "message": "no"})
    return 200, json.dumps({"Quota": {"Value": value}})
