"""Ask a cloud's metadata service whether it is about to take this node back.

The replies are those of AWS (instance metadata version 2: spot/instance-action and
events/recommendations/rebalance), Google Cloud (instance/preempted) and Azure (scheduled events,
version 2020-07-01), as their documentation has them; other clouds give no notice.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.agent.notice import NoticeSource, SourceSilent
from train.spool import Notice, Risk, UtcDatetime

# The services answer from the node's own host; Azure's very first answer may take two minutes.
_TIMEOUT_S = 2.0
_AZURE_TIMEOUT_S = 125.0
_ADDRESS = "http://169.254.169.254"
# Google's notice names no time: the node is stopped 30 s after it.
_GOOGLE_LEAVES = timedelta(seconds=30)
# Of Azure's events these end the node's processes; Freeze pauses them for seconds.
_AZURE_ENDS = ("Preempt", "Terminate", "Redeploy", "Reboot")


def open_notices(cloud: str) -> NoticeSource:
    """Return the source of notices for a node of this cloud."""
    source: NoticeSource
    match cloud:
        case "aws":
            source = AwsNotices(service_address(cloud))
        case "gcp":
            source = GoogleNotices(service_address(cloud))
        case "azure":
            source = AzureNotices(service_address(cloud))
        case _:
            return lambda: None

    def look() -> Notice | Risk | None:
        try:
            return source()
        except (httpx.HTTPError, ValueError, OverflowError) as error:
            raise SourceSilent(f"{cloud}: {error}") from error

    return look


def service_address(cloud: str) -> str:
    """Return where a cloud's service answers; the clouds' own libraries read the same variables."""
    match cloud:
        case "aws":
            return os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", _ADDRESS)
        case "gcp":
            host = os.environ.get("GCE_METADATA_HOST")
            return f"http://{host}" if host else _ADDRESS
        case "azure":
            return os.environ.get("AZURE_METADATA_SERVICE_ENDPOINT", _ADDRESS)
        case _:
            raise ValueError(f"{cloud} has no metadata service that is known here")


def aws_headers(client: httpx.Client) -> dict[str, str]:
    """Return what AWS wants with each question: a token that lives for a minute."""
    wanted = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = client.put("/latest/api/token", headers=wanted).raise_for_status().text
    return {"X-aws-ec2-metadata-token": token}


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _SpotAction(_Reply):
    action: Literal["hibernate", "stop", "terminate"]
    time: UtcDatetime


class _Rebalance(_Reply):
    noted_at: UtcDatetime = Field(alias="noticeTime")


class AwsNotices:
    """Spot interruptions, announced two minutes before; rebalance recommendations are a risk."""

    def __init__(self, address: str) -> None:
        self._client = open_client(address, _TIMEOUT_S)

    def __call__(self) -> Notice | Risk | None:
        """Return the notice or the risk, if there is one."""
        # A token per look: one that was garbled or has expired would go on failing.
        given = aws_headers(self._client)
        if (action := self._get("spot/instance-action", given)) is not None:
            return Notice(deadline_at=_SpotAction.model_validate_json(action).time)
        if (advice := self._get("events/recommendations/rebalance", given)) is not None:
            return Risk(noted_at=_Rebalance.model_validate_json(advice).noted_at)
        return None

    def _get(self, name: str, given: dict[str, str]) -> bytes | None:
        """Return what the service has under a name, None if there is nothing."""
        response = self._client.get(f"/latest/meta-data/{name}", headers=given)
        if response.status_code == HTTPStatus.NOT_FOUND:
            return None
        return response.raise_for_status().content


class GoogleNotices:
    """Preemptions, announced 30 seconds before."""

    def __init__(self, address: str) -> None:
        self._client = open_client(address, _TIMEOUT_S, {"Metadata-Flavor": "Google"})

    def __call__(self) -> Notice | None:
        """Return the notice, if there is one; its time counts from this look."""
        response = self._client.get("/computeMetadata/v1/instance/preempted")
        match response.raise_for_status().text.strip():
            case "TRUE":
                return Notice(deadline_at=datetime.now(timezone.utc) + _GOOGLE_LEAVES)
            case "FALSE":
                return None
            case other:
                raise ValueError(f"instance/preempted is {other[:40]!r}")


class _AzureEvent(_Reply):
    kind: str = Field(alias="EventType")
    resources: tuple[str, ...] = Field(default=(), alias="Resources")
    not_before: str = Field(default="", alias="NotBefore")
    """Empty once the event has begun."""


class _AzureEvents(_Reply):
    events: tuple[_AzureEvent, ...] = Field(default=(), alias="Events")


class AzureNotices:
    """Evictions, announced 30 seconds before, and reboots and redeployments, minutes before."""

    def __init__(self, address: str) -> None:
        self._client = open_client(address, _AZURE_TIMEOUT_S, {"Metadata": "true"})
        self._name: str | None = None

    def __call__(self) -> Notice | None:
        """Return the earliest notice of an event that ends this node."""
        found = self._get("/metadata/scheduledevents", {"api-version": "2020-07-01"})
        events = [
            event
            for event in _AzureEvents.model_validate_json(found.content).events
            if event.kind in _AZURE_ENDS
        ]
        # Events of others in the same set are listed too.
        times = [_time_of(event) for event in events if self._own_name() in event.resources]
        return Notice(deadline_at=min(times)) if times else None

    def _own_name(self) -> str:
        if self._name is None:
            wanted = {"api-version": "2021-02-01", "format": "text"}
            self._name = self._get("/metadata/instance/compute/name", wanted).text.strip()
        return self._name

    def _get(self, path: str, parameters: dict[str, str]) -> httpx.Response:
        return self._client.get(path, params=parameters).raise_for_status()


def _time_of(event: _AzureEvent) -> datetime:
    if not event.not_before:
        return datetime.now(timezone.utc)
    at = parsedate_to_datetime(event.not_before)
    return at if at.tzinfo is not None else at.replace(tzinfo=timezone.utc)


def open_client(
    address: str, timeout_s: float, headers: dict[str, str] | None = None
) -> httpx.Client:
    """Return a client for one metadata service."""
    return httpx.Client(
        base_url=address,
        timeout=timeout_s,
        headers=headers,
        # No proxy: what it would reach is its own host's metadata.
        trust_env=False,
        # A connection per look: it takes no time here, and none is ever found broken.
        limits=httpx.Limits(max_keepalive_connections=0),
    )
