"""Ask AWS' Cost Explorer what it billed for the nodes with a run's tag.

Each request costs a cent, so whoever calls has asked first. Lines are grouped by the kind of record
and not by service: credits would otherwise be netted with the usage that they pay for, and a usage
type says which service it is of.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import date, datetime, timedelta, timezone
from typing import Any

from orchestrator.billing.kinds import BillKind, kind_of_aws
from orchestrator.billing.tags import RUN_TAG, tag_of
from orchestrator.billing.tally import DAY, Line, Tally, amount_of, require_usd, shown
from orchestrator.errors import CloudRefused, UsageError

USD_PER_REQUEST = "0.01"
# What was forgotten there goes on costing after the end, and is found by looking a month further.
_AFTER_THE_END = timedelta(days=31)
_CONNECT_S, _READ_S = 5.0, 30.0
_TRIES = 4
_MOST_PAGES = 50
# It has one address for all regions.
_REGION = "us-east-1"
_HOURS = "Hrs"


def ask_bill(run_id: str, started_at: datetime, ended_at: datetime | None, now: datetime) -> Tally:
    """Return what AWS billed for the run, by day from its start to the present.

    Raises:
        CloudRefused: there are no credentials, they do not suffice, or there is no answer.
        UsageError: AWS' variables point to some other service.
    """
    start, end = period(started_at, ended_at, now)
    tally = Tally("aws", sources=["Cost Explorer"])
    tally.cover(start, end)
    for page in _pages(run_id, start, end):
        for day in page.get("ResultsByTime", ()):
            for group in day.get("Groups", ()):
                tally.add([_line(group, is_final=not day.get("Estimated", True))])
    return tally


def period(started_at: datetime, ended_at: datetime | None, now: datetime) -> tuple[date, date]:
    """Return the first day to ask for, and the day after the last: today, at the latest.

    Cost Explorer refuses an end past the first day of the next month, which tomorrow never is.
    """
    start = started_at.astimezone(timezone.utc).date()
    until = now if ended_at is None else min(now, ended_at + _AFTER_THE_END)
    return start, max(start, until.astimezone(timezone.utc).date()) + DAY


def _line(group: dict[str, Any], *, is_final: bool) -> Line:
    _, usage_type = group["Keys"]
    cost, usage = group["Metrics"]["UnblendedCost"], group["Metrics"]["UsageQuantity"]
    require_usd(str(cost["Unit"]), "What Cost Explorer says")
    kind = kind_of_aws(usage_type)
    is_hours = kind is BillKind.COMPUTE and usage.get("Unit") == _HOURS
    return Line(
        kind=kind,
        usd=amount_of(cost["Amount"], "What Cost Explorer says"),
        hours=amount_of(usage["Amount"], "What Cost Explorer says") if is_hours else None,
        is_final=is_final,
    )


def _pages(run_id: str, start: date, end: date) -> Iterator[dict[str, Any]]:
    from botocore.exceptions import BotoCoreError, ClientError  # 190 ms, for who asks AWS only

    asked: dict[str, Any] = {
        "TimePeriod": {"Start": start.isoformat(), "End": end.isoformat()},
        "Granularity": "DAILY",
        "Metrics": ["UnblendedCost", "UsageQuantity"],
        "Filter": {
            "Tags": {"Key": RUN_TAG, "Values": [tag_of(run_id)], "MatchOptions": ["EQUALS"]}
        },
        "GroupBy": [
            {"Type": "DIMENSION", "Key": "RECORD_TYPE"},
            {"Type": "DIMENSION", "Key": "USAGE_TYPE"},
        ],
    }
    try:
        client = _client()
        for _ in range(_MOST_PAGES):
            page = client.get_cost_and_usage(**asked)
            yield page
            if not page.get("NextPageToken"):
                return
            asked["NextPageToken"] = page["NextPageToken"]
    except ClientError as error:
        raise _refused(error.response.get("Error", {})) from error
    except BotoCoreError as error:
        raise _unreachable(error) from error
    raise CloudRefused(
        f"Cost Explorer's answer has more than {_MOST_PAGES} pages, each for ${USD_PER_REQUEST}.",
        "Read an export: orchestrate cost RUN --reconcile FILE",
    )


def _client() -> Any:  # noqa: ANN401  # boto3 makes it at run time
    import boto3  # as above
    from botocore.config import Config
    from botocore.session import Session

    variable = "AWS_ENDPOINT_URL"
    if os.environ.get(variable) and not os.environ.get(f"{variable}_COST_EXPLORER"):
        raise UsageError(
            f"{variable} is set, so another service would be asked what AWS billed.",
            f"Unset it for this command: env -u {variable} orchestrate cost ...",
        )
    session = Session()
    # Without credentials of its own a laptop must not look for an instance's.
    session.set_config_variable("metadata_service_num_attempts", 0)
    config = Config(
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        retries={"total_max_attempts": _TRIES, "mode": "standard"},  # with jitter
    )
    make: Any = boto3.Session(botocore_session=session).client
    return make("ce", region_name=_REGION, config=config)


def _refused(error: Mapping[str, Any]) -> CloudRefused:
    code = str(error.get("Code", "no reason"))
    if code.startswith("AccessDenied") or code == "UnauthorizedOperation":
        return CloudRefused(
            f"AWS does not let these credentials ask Cost Explorer: {code}.",
            "Allow ce:GetCostAndUsage (see docs/security.md), or read an export: --reconcile FILE",
        )
    if code == "DataUnavailableException":
        return CloudRefused(
            "Cost Explorer has no data of this account yet.",
            "Turn it on in AWS Billing, and ask again a day later.",
        )
    return CloudRefused(
        f"Cost Explorer refused: {code}: {shown(error.get('Message', ''))}.",
        "Try again later, or read an export: --reconcile FILE",
    )


def _unreachable(error: Exception) -> CloudRefused:
    name = type(error).__name__
    if "Credentials" in name or "Token" in name or name == "ProfileNotFound":
        return CloudRefused(
            f"There are no credentials for AWS here: {name}.", "Sign in: aws configure."
        )
    return CloudRefused(
        f"Cost Explorer cannot be reached: {name}.",
        "Try again later, or read an export: --reconcile FILE",
    )
