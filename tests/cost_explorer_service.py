"""Cost Explorer's GetCostAndUsage on loopback, as documented, for a real boto3 client to ask.

Written from botocore's model ce-2017-10-25 and from what AWS is known to refuse: an end past the
first day of the next month (aws-sdk-js issue 2732) and a period that ends before it starts.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_TARGET = "AWSInsightsIndexService.GetCostAndUsage"


@dataclass(frozen=True, kw_only=True)
class Billed:
    """One line: what was billed for whom on which day."""

    run: str
    day: date
    usage_type: str
    usd: str
    hours: str = "0"
    unit: str = "Hrs"
    record_type: str = "Usage"


@dataclass
class CostExplorer:
    """What it says and how; `failures` are codes to answer first, one each."""

    endpoint: str = ""
    lines: list[Billed] = field(default_factory=list)
    days_per_page: int = 1000
    currency: str = "USD"
    is_estimated: bool = True
    failures: list[str] = field(default_factory=list)
    is_endless: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def cost_explorer() -> Iterator[CostExplorer]:
    service = CostExplorer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.headers["X-Amz-Target"] == _TARGET
            assert "/us-east-1/ce/aws4_request" in self.headers["Authorization"]
            service.asked.append(body)
            status, answer = _answer(service, body)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.endpoint = f"http://127.0.0.1:{server.server_port}"
    # Half a second, otherwise, until it sees that it is to end.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield service
    server.shutdown()
    server.server_close()


def _answer(service: CostExplorer, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    if service.failures:
        code = service.failures.pop(0)
        return 400, {"__type": code, "message": f"{code}, said\nAWS"}
    start, end = (date.fromisoformat(body["TimePeriod"][one]) for one in ("Start", "End"))
    today = datetime.now(timezone.utc).date()
    next_month = (today.replace(day=1) + timedelta(days=32)).replace(day=1)
    if start >= end or start > today or end > next_month:
        return 400, {"__type": "ValidationException", "message": "that period is not answered"}
    assert body["Granularity"] == "DAILY"
    tags = body["Filter"]["Tags"]
    assert tags["Key"] == "orchestrate-run"
    keys = [group["Key"] for group in body["GroupBy"]]
    days = [start + timedelta(days=number) for number in range((end - start).days)]
    first = int(body.get("NextPageToken", 0))
    page = days[first : first + service.days_per_page]
    answer = {
        "GroupDefinitions": body["GroupBy"],
        "ResultsByTime": [_day(service, day, tags["Values"], keys) for day in page],
    }
    following = first + len(page)
    if following < len(days) or service.is_endless:
        answer["NextPageToken"] = str(following % len(days))
    return 200, answer


def _day(service: CostExplorer, day: date, runs: list[str], keys: list[str]) -> dict[str, Any]:
    groups = [
        {
            "Keys": [
                {"RECORD_TYPE": one.record_type, "USAGE_TYPE": one.usage_type}[k] for k in keys
            ],
            "Metrics": {
                "UnblendedCost": {"Amount": one.usd, "Unit": service.currency},
                "UsageQuantity": {"Amount": one.hours, "Unit": one.unit},
            },
        }
        for one in service.lines
        if one.day == day and one.run in runs
    ]
    return {
        "TimePeriod": {"Start": str(day), "End": str(day + timedelta(days=1))},
        "Total": {},
        "Groups": groups,
        "Estimated": service.is_estimated,
    }
