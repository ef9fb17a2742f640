"""SkyPilot's catalogs of the cell: the real files' columns, a few regions and machines.

Hand-placed files without their .md5 beside them count as modified: SkyPilot never fetches them.
Prices are of the order of 2026's; they can be changed while the cell runs.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.cell.fake_aws import USER_ID

# On AWS a catalog names zones by what they are, an account by what it sees: (id, name, share).
_AWS_ZONES = {
    "us-east-1": (("use1-az1", "us-east-1a", 1.00), ("use1-az2", "us-east-1b", 1.10)),
    "us-east-2": (("use2-az1", "us-east-2a", 1.06), ("use2-az2", "us-east-2b", 1.08)),
    "us-west-2": (("usw2-az1", "us-west-2a", 1.10), ("usw2-az2", "us-west-2b", 1.14)),
}
_GCP_ZONES = {
    "us-central1": (("us-central1-a", 1.00), ("us-central1-c", 1.05)),
    "us-east1": (("us-east1-b", 1.02),),
    "us-west1": (("us-west1-b", 1.08),),
}
# Type, accelerator, count, vCPUs, GiB, on-demand and spot USD per hour in the cheapest zone.
_AWS_TYPES = (
    ("p4d.24xlarge", "A100", 8, 96, 1152, 21.957642, 7.47),
    ("p4de.24xlarge", "A100-80GB", 8, 96, 1152, 27.44705, 9.41),
    ("m6i.xlarge", "", None, 4, 16, 0.192, 0.075),
    ("m6i.2xlarge", "", None, 8, 32, 0.384, 0.15),
)
_GCP_TYPES = (
    ("a2-highgpu-8g", "A100", 8, 96, 680, 5.91582, 2.958, 23.47126, 11.4728),
    ("a2-ultragpu-8g", "A100-80GB", 8, 96, 1360, 8.29664, 3.0, 32.2552, 10.4),
    ("n2-standard-4", "", None, 4, 16, 0.194, 0.045, 0.0, 0.0),
    ("n2-standard-8", "", None, 8, 32, 0.388, 0.09, 0.0, 0.0),
)
_GIB = {"A100": 40, "A100-80GB": 80}
_AWS_TAGS = (
    "skypilot:custom-gpu-ubuntu-cuda13",
    "skypilot:custom-gpu-ubuntu",
    "skypilot:custom-cpu-ubuntu",
)
_GCP_TAGS = (
    "skypilot:custom-gpu-ubuntu-2204-cuda13",
    "skypilot:custom-gpu-ubuntu-2204",
    "skypilot:custom-cpu-ubuntu-2204",
)
_AWS_COLUMNS = (
    "InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "GpuInfo",
    "Price", "SpotPrice", "Region", "AvailabilityZone", "Arch", "LocalDiskType", "NVMeSupported",
    "LocalDiskSize", "LocalDiskCount",
)  # fmt: skip
_GCP_COLUMNS = (
    "InstanceType", "vCPUs", "MemoryGiB", "AcceleratorName", "AcceleratorCount", "GpuInfo",
    "Region", "AvailabilityZone", "Price", "SpotPrice",
)  # fmt: skip

Row = Sequence[object]


def write_catalogs(home: Path) -> None:
    """Write every file that SkyPilot would fetch."""
    root = home / ".sky" / "catalogs" / "v8"
    aws, gcp, common = root / "aws", root / "gcp", root / "common"
    _write(aws / "vms.csv", _AWS_COLUMNS, _aws_rows())
    columns = "Tag", "Region", "OS", "OSVersion", "ImageId", "CreationDate", "BaseImageId"
    images = [
        (tag, region, "ubuntu", "22.04", f"ami-{number:017x}", "20260601", f"ami-{number:017x}")
        for tag in _AWS_TAGS
        for number, region in enumerate(_AWS_ZONES, 1)
    ]
    _write(aws / "images.csv", columns, images)
    # A type without a code is not asked for its quota.
    quota = "SpotInstanceCode", "OnDemandInstanceCode"
    _write(aws / "instance_quota_mapping.csv", ("InstanceType", *quota), [("x.none", "L-0", "L-0")])
    _write(gcp / "accelerator_quota_mapping.csv", ("Accelerator", *quota), [("none", "x", "x")])
    # Found by the account that asks: then its zones are not asked for.
    account = hashlib.md5(USER_ID.encode(), usedforsecurity=False).hexdigest()[:8]
    zones = [(zone, name) for three in _AWS_ZONES.values() for zone, name, _ in three]
    mapping = aws / f"az_mappings-{account}.csv"
    _write(mapping, ("AvailabilityZone", "AvailabilityZoneName"), zones)
    _write(gcp / "vms.csv", _GCP_COLUMNS, _gcp_rows())
    tags = [(tag, "projects/cell/global/images/cell") for tag in _GCP_TAGS]
    _write(gcp / "images.csv", ("Tag", "ImageId"), tags)
    known = [(name, "['AWS', 'GCP']") for name in _GIB]
    _write(common / "accelerators.csv", ("AcceleratorName", "Clouds"), known)
    memory = [(name, f"{gib}GB", "NVIDIA") for name, gib in _GIB.items()]
    _write(common / "metadata.csv", ("GPU", "MemoryGB", "Manufacturer"), memory)


def set_prices(
    home: Path,
    cloud: str,
    instance_type: str,
    *,
    zone: str | None = None,
    spot: float | None = None,
    on_demand: float | None = None,
) -> int:
    """Change the prices of a machine, everywhere or in a zone, and return in how many zones.

    On Google Cloud the machine's row keeps its price; the accelerators' row becomes the rest.
    """
    path = home / ".sky" / "catalogs" / "v8" / cloud / "vms.csv"
    with path.open(encoding="utf-8", newline="") as text:
        rows = list(csv.DictReader(text))
    wanted = {"SpotPrice": spot, "Price": on_demand}
    changed = 0
    for host in rows:
        if host["InstanceType"] != instance_type or zone not in (None, _name_of(host)):
            continue
        priced, base = _priced_row(rows, host, instance_type)
        for column, price in wanted.items():
            if price is not None:
                priced[column] = f"{price - (float(base[column]) if base else 0):.6f}"
        changed += 1
    _write(path, list(rows[0]), [list(row.values()) for row in rows])
    return changed


def _name_of(row: dict[str, str]) -> str:
    names = {zone: name for three in _AWS_ZONES.values() for zone, name, _ in three}
    return names.get(row["AvailabilityZone"], row["AvailabilityZone"])


def _priced_row(
    rows: list[dict[str, str]], host: dict[str, str], instance_type: str
) -> tuple[dict[str, str], dict[str, str] | None]:
    """Return the row whose price makes the difference, and the one that is added to it."""
    accelerator = next((kind[1] for kind in _GCP_TYPES if kind[0] == instance_type), "")
    for row in rows:
        if (
            accelerator
            and not row["InstanceType"]
            and row["AcceleratorName"] == accelerator
            and row["AvailabilityZone"] == host["AvailabilityZone"]
        ):
            return row, host
    return host, None


def _aws_rows() -> Iterable[Row]:
    for region, zones in _AWS_ZONES.items():
        for zone, _, share in zones:
            for kind, gpu, count, cpus, gib, on_demand, spot in _AWS_TYPES:
                disk = ("ssd", True, 1000, 8) if gpu else ("", "", "", "")
                yield (
                    *(kind, gpu, _number(count), float(cpus), float(gib), _gpus(gpu, count)),
                    *(on_demand, round(spot * share, 4), region, zone, "x86_64", *disk),
                )


def _gcp_rows() -> Iterable[Row]:
    for region, zones in _GCP_ZONES.items():
        for zone, share in zones:
            for kind, gpu, count, cpus, gib, price, spot, gpu_price, gpu_spot in _GCP_TYPES:
                host = kind, float(cpus), float(gib), "", "", ""
                yield *host, region, zone, price, round(spot * share, 4)
                if gpu:
                    about = "", "", "", gpu, _number(count), _gpus(gpu, count)
                    yield *about, region, zone, gpu_price, round(gpu_spot * share, 4)


def _number(count: int | None) -> object:
    return "" if count is None else float(count)


def _gpus(name: str, count: int | None) -> str:
    if count is None:
        return ""
    mib = _GIB[name] * 1024
    one = {"Name": name, "Manufacturer": "NVIDIA", "Count": float(count)}
    return str(
        {"Gpus": [{**one, "MemoryInfo": {"SizeInMiB": mib}}], "TotalGpuMemoryInMiB": mib * count}
    )


def _write(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8", newline="") as text:
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    new.replace(path)
