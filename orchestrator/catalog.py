"""SkyPilot's price catalog, read from its CSV files where SkyPilot has fetched them.

Not through SkyPilot: importing that takes seconds, and `plan` shows prices in tenths of one. The
format is that of catalogs/v8 in skypilot-org/skypilot-catalog.
"""

from __future__ import annotations

import csv
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path

from orchestrator.offers import Market, Offer, PriceTable, shipped_prices

log = logging.getLogger(__name__)

_VERSION = "v8"
# On Google Cloud the accelerators and the machine that they need are rows of their own.
_GOOGLE_HOSTS = {
    "A100:1": "a2-highgpu-1g",
    "A100:2": "a2-highgpu-2g",
    "A100:4": "a2-highgpu-4g",
    "A100:8": "a2-highgpu-8g",
    "A100:16": "a2-megagpu-16g",
    "A100-80GB:1": "a2-ultragpu-1g",
    "A100-80GB:2": "a2-ultragpu-2g",
    "A100-80GB:4": "a2-ultragpu-4g",
    "A100-80GB:8": "a2-ultragpu-8g",
    "H100:1": "a3-highgpu-1g",
    "H100:2": "a3-highgpu-2g",
    "H100:4": "a3-highgpu-4g",
    "H100:8": "a3-highgpu-8g",
}


def read_catalog(accelerators: str, clouds: Iterable[str]) -> PriceTable | None:
    """Return what the catalog has of `accelerators` in these clouds, None if it is not there.

    Rows that cannot be read are left out. A cloud without a file that can be understood is priced
    by the shipped table.
    """
    files = {cloud: catalog_folder() / cloud / "vms.csv" for cloud in clouds}
    read = {cloud: _read(cloud, accelerators, file) for cloud, file in files.items()}
    found = {cloud: offers for cloud, offers in read.items() if offers is not None}
    if not found:
        return None
    shipped = shipped_prices()
    missing = sorted(files.keys() - found.keys())
    added = tuple(offer for offer in shipped.offers if offer.cloud in missing)
    return PriceTable(
        offers=tuple(offer for offers in found.values() for offer in offers) + added,
        source=f"SkyPilot's catalog {_VERSION}"
        + (f", {', '.join(missing)} by {shipped.source}" if missing else ""),
        as_of=datetime.fromtimestamp(
            min(files[cloud].stat().st_mtime for cloud in found), timezone.utc
        ),
    )


def catalog_state(clouds: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Return what changes whenever SkyPilot writes what `read_catalog` reads."""
    files = ((cloud, catalog_folder() / cloud / "vms.csv") for cloud in clouds)
    return tuple((cloud, file.stat().st_mtime_ns) for cloud, file in files if file.exists())


def catalog_folder() -> Path:
    """Return where SkyPilot keeps its catalog on this machine."""
    root = Path(os.environ.get("SKY_RUNTIME_DIR") or Path.home())
    return root / ".sky" / "catalogs" / _VERSION


def quota_codes(instance_type: str) -> dict[Market, str]:
    """Return the codes of the AWS quotas that limit an instance type; empty where unknown."""
    columns = {Market.SPOT: "SpotInstanceCode", Market.ON_DEMAND: "OnDemandInstanceCode"}
    for row in _read_rows(catalog_folder() / "aws" / "instance_quota_mapping.csv"):
        if row.get("InstanceType") == instance_type:
            return {market: code for market, name in columns.items() if (code := row.get(name))}
    return {}


def num_vcpus(cloud: str, instance_type: str) -> float | None:
    """Return the vCPUs of an instance type, in which AWS counts quotas; None where unknown."""
    for row in _read_rows(catalog_folder() / cloud / "vms.csv"):
        if row.get("InstanceType") == instance_type:
            try:
                return float(row["vCPUs"])
            except (KeyError, TypeError, ValueError):
                return None
    return None


def on_demand_price(cloud: str, instance_type: str, region: str) -> Decimal | None:
    """Return what an instance type costs per hour in a region; None where that is unknown."""
    for row in _read_rows(catalog_folder() / cloud / "vms.csv"):
        if (row.get("InstanceType"), row.get("Region")) == (instance_type, region):
            return _price(row, "Price")
    return None


def _zone_names() -> dict[str, str]:
    """Return this account's names of AWS zones by their ids, which are what the catalog has.

    SkyPilot keeps a file of them per account; with several there is no telling whose is meant.
    """
    files = list((catalog_folder() / "aws").glob("az_mappings-*.csv"))
    rows = _read_rows(files[0]) if len(files) == 1 else []
    names = {row.get("AvailabilityZone"): row.get("AvailabilityZoneName") for row in rows}
    return {zone_id: name for zone_id, name in names.items() if zone_id and name}


def _read_rows(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(encoding="utf-8", newline="") as text:
            return list(csv.DictReader(text))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        log.warning("%s was left out: %r", file, error)
        return []


def _read(cloud: str, accelerators: str, file: Path) -> list[Offer] | None:
    """Return the offers of a cloud's file, None if it is not there or not understood."""
    if cloud == "gcp" and accelerators not in _GOOGLE_HOSTS:
        return None
    rows_of = _google_rows if cloud == "gcp" else _rows
    try:
        with file.open(encoding="utf-8", newline="") as text:
            lines = _naming(text, accelerators.partition(":")[0], _GOOGLE_HOSTS.get(accelerators))
            offers = list(rows_of(cloud, accelerators, csv.DictReader(lines)))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        log.warning("%s was left out: %r", file, error)
        return None
    return named(offers, _zone_names()) if cloud == "aws" else offers


def _naming(text: Iterable[str], *words: str | None) -> Iterator[str]:
    """Yield the header and what names one of the words: most of 100,000 rows need no parsing."""
    lines, wanted = iter(text), [word for word in words if word]
    yield from itertools.islice(lines, 1)
    yield from (line for line in lines if any(word in line for word in wanted))


def named(offers: Iterable[Offer], names: Mapping[str, str]) -> list[Offer]:
    """Return the offers with zones by their names where those are known: launches name zones."""
    return [replace(offer, zone=names.get(offer.zone, offer.zone)) for offer in offers]


def _rows(cloud: str, accelerators: str, rows: Iterable[dict[str, str]]) -> Iterator[Offer]:
    for row in rows:
        if _accelerators(row) == accelerators:
            prices = _price(row, "Price"), _price(row, "SpotPrice")
            yield from _offers(cloud, accelerators, row, row["InstanceType"], *prices)


def _google_rows(cloud: str, accelerators: str, rows: Iterable[dict[str, str]]) -> Iterator[Offer]:
    host_type = _GOOGLE_HOSTS[accelerators]
    hosts, fitting = {}, []
    for row in rows:
        if row["InstanceType"] == host_type:
            hosts[row["AvailabilityZone"]] = row
        elif not row["InstanceType"] and _accelerators(row) == accelerators:
            fitting.append(row)
    for row in fitting:
        host = hosts.get(row["AvailabilityZone"])
        if host is not None:
            prices = (_sum(row, host, "Price"), _sum(row, host, "SpotPrice"))
            yield from _offers(cloud, accelerators, row, host_type, *prices)


def _offers(
    cloud: str,
    accelerators: str,
    row: dict[str, str],
    instance_type: str,
    on_demand: Decimal | None,
    spot: Decimal | None,
) -> Iterator[Offer]:
    """Yield what the row offers; without an on-demand price there is nothing to compare with."""
    if on_demand is None or not row["Region"]:  # or the file ends in the middle of the row
        return
    for market, price in ((Market.ON_DEMAND, on_demand), (Market.SPOT, spot)):
        if price is not None:
            yield Offer(
                cloud=cloud,
                region=row["Region"],
                zone=row.get("AvailabilityZone") or row["Region"],
                instance_type=instance_type,
                accelerators=accelerators,
                market=market,
                usd_per_hour=price,
                on_demand_usd_per_hour=on_demand,
            )


def _accelerators(row: dict[str, str]) -> str | None:
    try:
        return f"{row['AcceleratorName']}:{float(row['AcceleratorCount']):g}"
    except (TypeError, ValueError):
        return None


def _price(row: dict[str, str], name: str) -> Decimal | None:
    try:
        price = Decimal(row.get(name) or "")
    except InvalidOperation:
        return None
    return price if price.is_finite() and price > 0 else None


def _sum(row: dict[str, str], host: dict[str, str], name: str) -> Decimal | None:
    parts = _price(row, name), _price(host, name)
    return None if None in parts else sum(filter(None, parts), Decimal(0))
