"""What AWS itself says: spot prices of now by zone, and the quotas of an account.

Prices come from ec2:DescribeSpotPriceHistory. Regions are asked at once, and whoever has not
answered in time is named and left out: a plan must not wait for a network.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

from orchestrator.catalog import named
from orchestrator.offers import Market, Offer

Answer = TypeVar("Answer")

# A plan takes less than 3 s all in all.
_PATIENCE = timedelta(seconds=2)
_CONNECT_S = 1.0
_READ_S = 1.5
_ATTEMPTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotPrice:
    """The price in force of one kind of node in one zone."""

    instance_type: str
    zone: str
    zone_id: str | None
    usd_per_hour: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What regions said, and why others did not; a reason is one line."""

    prices: Mapping[str, tuple[SpotPrice, ...]]
    failures: Mapping[str, str]


def is_elsewhere() -> bool:
    """Say whether AWS' variables point to another service, such as a store that speaks S3."""
    return bool(os.environ.get("AWS_ENDPOINT_URL") and not os.environ.get("AWS_ENDPOINT_URL_EC2"))


def ask_spot_prices(instance_types: list[str], regions: Iterable[str], now: datetime) -> Answers:
    """Ask every region for the spot prices in force, all at once and not for long."""

    def ask(ec2: Any) -> tuple[SpotPrice, ...]:  # noqa: ANN401  # boto3 makes it at run time
        found = ec2.get_paginator("describe_spot_price_history").paginate(
            InstanceTypes=instance_types,
            ProductDescriptions=["Linux/UNIX"],
            StartTime=now,  # what is in force then, and nothing of before
        )
        return _latest(row for page in found for row in page["SpotPriceHistory"])

    prices, failures = _ask_all("ec2", regions, ask)
    return Answers(prices=prices, failures=failures)


def merge_spot_prices(offers: Iterable[Offer], answers: Answers) -> tuple[Offer, ...]:
    """Return the offers with AWS' own spot prices where there are any.

    A region that answered has spot in the zones that it named and in no other. Zones are named as
    the account names them, wherever the answer says which id is meant.
    """
    names = {p.zone_id: p.zone for found in answers.prices.values() for p in found if p.zone_id}
    merged = []
    listed: dict[tuple[str, str], Offer] = {}
    for offer in named(offers, names):
        if offer.cloud == "aws" and answers.prices.get(offer.region):
            listed[offer.region, offer.instance_type] = offer
            if offer.market is Market.SPOT:
                continue
        merged.append(offer)
    for region, prices in answers.prices.items():
        for price in prices:
            like = listed.get((region, price.instance_type))
            if like is not None:
                amount = price.usd_per_hour
                spot = replace(like, zone=price.zone, market=Market.SPOT, usd_per_hour=amount)
                merged.append(spot)
    return tuple(merged)


def ask_quotas(code: str, regions: Iterable[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Return what the account may have by one quota of EC2 in each region, and why not."""

    def ask(quotas: Any) -> float:  # noqa: ANN401  # as above
        found = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)
        return float(found["Quota"]["Value"])

    return _ask_all("service-quotas", regions, ask)


def _clients(service: str, regions: Iterable[str]) -> dict[str, Any]:
    """Return a client per region that gives up soon.

    From one session, which takes 120 ms for the first and 6 for each of the others.
    """
    import boto3  # 190 ms, and only for who has credentials
    from botocore.config import Config
    from botocore.session import Session

    session = Session()
    # Without credentials of its own a laptop must not look for an instance's.
    session.set_config_variable("metadata_service_num_attempts", 0)
    config = Config(
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
    )
    make: Any = boto3.Session(botocore_session=session).client
    return {region: make(service, region_name=region, config=config) for region in regions}


def _ask_all(
    service: str, regions: Iterable[str], ask: Callable[[Any], Answer]
) -> tuple[dict[str, Answer], dict[str, str]]:
    """Return what each region answered, and why others did not; all are asked at once.

    In threads that nobody waits for: a call that hangs must not keep the program from ending.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # as above

    regions = list(regions)
    try:
        clients = _clients(service, regions)
    except BotoCoreError as error:  # such as a profile that is not there
        return {}, dict.fromkeys(regions, type(error).__name__)
    replies: queue.SimpleQueue[tuple[str, Answer | None, str | None]] = queue.SimpleQueue()

    def reply(region: str) -> None:
        try:
            replies.put((region, ask(clients[region]), None))
        except ClientError as error:
            replies.put((region, None, str(error.response.get("Error", {}).get("Code", error))))
        except (BotoCoreError, OSError, LookupError, ValueError, ArithmeticError) as error:
            replies.put((region, None, type(error).__name__))

    for region in regions:
        threading.Thread(target=reply, args=(region,), daemon=True).start()
    until = time.monotonic() + _PATIENCE.total_seconds()
    answers: dict[str, Answer] = {}
    failures = dict.fromkeys(regions, f"no reply within {_PATIENCE.total_seconds():g} s")
    for _ in regions:
        try:
            region, answer, why_not = replies.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        if answer is None:
            failures[region] = why_not or "no answer"
        else:
            answers[region] = answer
            del failures[region]
    return answers, failures


def _latest(rows: Iterable[Mapping[str, Any]]) -> tuple[SpotPrice, ...]:
    latest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        key = row["AvailabilityZone"], row["InstanceType"]
        if key not in latest or row["Timestamp"] > latest[key]["Timestamp"]:
            latest[key] = row
    return tuple(
        SpotPrice(
            instance_type=instance_type,
            zone=zone,
            zone_id=row.get("AvailabilityZoneId"),
            usd_per_hour=Decimal(row["SpotPrice"]),
        )
        for (zone, instance_type), row in sorted(latest.items())
    )
