"""What the columns of AWS' and Google's exports mean: a row becomes lines of the run's bill.

Names are compared without case and punctuation, so that lineItem/UnblendedCost of a Cost and Usage
Report and line_item_unblended_cost of a Data Export are two names and not ten.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from orchestrator.billing.kinds import BillKind, kind_of_aws, kind_of_google
from orchestrator.billing.tags import RUN_TAG, tag_of
from orchestrator.billing.tally import Line, amount_of, day_of, require_usd, shown
from orchestrator.errors import InputError

Row = Mapping[str, Any]
"""The cells that are there, by the names that `Columns.names` has for them."""


@lru_cache(maxsize=4096)
def plain(name: str) -> str:
    """Return a column's name, or a tag's key, in lower case and with _ for all punctuation."""
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


_TAG = plain(RUN_TAG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """One cloud's export."""

    cloud: str
    names: Mapping[str, tuple[str, ...]]
    """What we call a cell, and what its column may be called; the first that is there counts."""
    required: tuple[str, ...]
    lines: Callable[[Row, str], list[Line]]
    """The lines of a row that is the run's; the second argument says where the row is."""
    tag: Callable[[Row, str], str | None]
    """The run's tag in a row, None without one."""

    def of(self, header: Iterable[str]) -> dict[str, int]:
        """Return where our cells are in rows under this header."""
        places = {plain(name): place for place, name in reversed(list(enumerate(header)))}
        found = {
            cell: next((places[name] for name in names if name in places), None)
            for cell, names in self.names.items()
        }
        return {cell: place for cell, place in found.items() if place is not None}

    def missing(self, cells: Iterable[str]) -> list[str]:
        """Return the columns that are needed and not there, as the cloud names them."""
        there = set(cells)
        return [_WRITTEN[self.cloud][cell] for cell in self.required if cell not in there]

    def is_of(self, row: Row, run_id: str, where: str) -> bool:
        """Say whether a row is of the run."""
        return self.tag(row, where) == tag_of(run_id)


def _aws_lines(row: Row, where: str) -> list[Line]:
    require_usd(str(row.get("currency") or "USD"), where)
    kind = kind_of_aws(str(row["usage"]))
    hours = row.get("amount") if kind is BillKind.COMPUTE else None
    is_hours = hours not in (None, "") and "EBSOptimized" not in str(row["usage"])
    return [
        Line(
            kind=kind,
            usd=amount_of(row["cost"], f"{where}: the cost"),
            hours=amount_of(hours, f"{where}: the usage") if is_hours else None,
            ends_on=day_of(str(row.get("end") or "")),
            is_final=bool(row.get("invoice")),
        )
    ]


def _aws_tag(row: Row, where: str) -> str | None:
    if row.get("tag"):
        return str(row["tag"])
    for cell in ("tags", "all_tags"):
        text = str(row.get(cell) or "")
        if RUN_TAG in text or _TAG in text:  # or each row of a large bill would be parsed
            found = _json(text, where, dict)
            for key, value in found.items():
                if plain(key).removeprefix("resourcetags_").removeprefix("user_") == _TAG:
                    return str(value)
    return None


def _google_lines(row: Row, where: str) -> list[Line]:
    require_usd(str(row.get("currency") or "USD"), where)
    ends_on = day_of(str(row.get("end") or ""))
    usage = Line(
        kind=kind_of_google(str(row["sku"])),
        usd=amount_of(row["cost"], f"{where}: the cost"),
        ends_on=ends_on,
    )
    credits = _json(row.get("credits") or [], where, list)
    return [
        usage,
        *(
            Line(kind=BillKind.CREDITS, usd=amount_of(_get(one, "amount"), f"{where}: a credit"))
            for one in credits
        ),
    ]


def _google_tag(row: Row, where: str) -> str | None:
    labels = row.get("labels")
    if isinstance(labels, str):
        if RUN_TAG not in labels:  # as above
            return None
        labels = _json(labels, where, (list, dict))
    if isinstance(labels, dict):
        labels = [{"key": key, "value": value} for key, value in labels.items()]
    for label in _json(labels or [], where, list):
        if _get(label, "key") == RUN_TAG:
            return str(_get(label, "value"))
    return None


def _get(found: Any, key: str) -> Any:  # noqa: ANN401  # JSON
    return found.get(key) if isinstance(found, dict) else None


def _json(cell: Any, where: str, kind: type | tuple[type, ...]) -> Any:  # noqa: ANN401  # JSON
    if isinstance(cell, str):
        try:
            cell = json.loads(cell, parse_float=Decimal, parse_int=Decimal)
        except (ValueError, ArithmeticError, RecursionError):
            cell = None if cell.strip() else []
    if not isinstance(cell, kind):
        raise InputError(
            f"{where} holds no JSON where tags, labels or credits are: {shown(cell)}.",
            "Export nested columns as JSON.",
        )
    return cell


AWS = Columns(
    cloud="aws",
    names={
        "cost": ("lineitem_unblendedcost", "line_item_unblended_cost"),
        "usage": ("lineitem_usagetype", "line_item_usage_type"),
        "start": ("lineitem_usagestartdate", "line_item_usage_start_date"),
        "end": ("lineitem_usageenddate", "line_item_usage_end_date"),
        "amount": ("lineitem_usageamount", "line_item_usage_amount"),
        "currency": ("lineitem_currencycode", "line_item_currency_code"),
        "invoice": ("bill_invoiceid", "bill_invoice_id"),
        "tag": (f"resourcetags_user_{_TAG}", f"resource_tags_user_{_TAG}"),
        "tags": ("resource_tags",),
        "all_tags": ("tags",),
    },
    required=("cost", "usage", "start"),
    lines=_aws_lines,
    tag=_aws_tag,
)
GOOGLE = Columns(
    cloud="gcp",
    names={
        "cost": ("cost",),
        "sku": ("sku_description",),
        "start": ("usage_start_time",),
        "end": ("usage_end_time",),
        "currency": ("currency",),
        "credits": ("credits",),
        "labels": ("labels",),
    },
    required=("cost", "sku", "start"),
    lines=_google_lines,
    tag=_google_tag,
)
_WRITTEN = {
    "aws": {
        "cost": "lineItem/UnblendedCost or line_item_unblended_cost",
        "usage": "lineItem/UsageType or line_item_usage_type",
        "start": "lineItem/UsageStartDate or line_item_usage_start_date",
    },
    "gcp": {"cost": "cost", "sku": "sku.description", "start": "usage_start_time"},
}
TAG_COLUMNS = {
    "aws": ("tag", "tags", "all_tags"),
    "gcp": ("labels",),
}
"""One of these has the run's tag."""
