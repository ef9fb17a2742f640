"""Sort the lines of a cloud's bill into our parts, by what the cloud calls its usage.

Written from the documented names (AWS' usage types, Google's SKU descriptions); what is not known
is `other`, which is shown as well.
"""

from __future__ import annotations

import re
from enum import Enum


class BillKind(str, Enum):
    """What a line of a bill is for."""

    COMPUTE = "compute"
    """Instance hours."""
    DISKS = "disks"
    """Disks of nodes, which our bill leaves out."""
    EGRESS = "egress"
    """Bytes that left a node, or came to it."""
    STORAGE = "storage"
    REQUESTS = "requests"
    OTHER = "other"
    """Addresses, licences, monitoring, taxes, and names that are not known."""
    CREDITS = "credits"
    """Whatever is negative: credits, refunds, discounts. Beside usage, so as not to hide it."""


# The first that fits; usage types begin with the short name of a region, as in USW2-SpotUsage:p4d.
_AWS = (
    (r"\bEBS:", BillKind.DISKS),
    (r"(Box|Spot|Heavy|Dedicated|Host|Sched)Usage\b", BillKind.COMPUTE),
    (r"\bEBSOptimized:|\bCPUCredits:", BillKind.COMPUTE),
    (r"DataTransfer|-(In|Out|Regional)-\w*Bytes|NatGateway-Bytes|\bVpcPeering-", BillKind.EGRESS),
    (r"\bRequests-|-Requests\b", BillKind.REQUESTS),
    (r"TimedStorage|EarlyDelete", BillKind.STORAGE),
)
_GOOGLE = (
    (r"\b(PD|Hyperdisk)\b|Local Storage|Snapshot", BillKind.DISKS),
    (r"\bClass [AB]\b", BillKind.REQUESTS),
    (r"Egress|Ingress|Data Transfer|Download", BillKind.EGRESS),
    (r"\b(Core|Cores|Ram|GPU|vCPU|TPU)\b.*\b(running|attached)\b", BillKind.COMPUTE),
    (r"\bStorage\b", BillKind.STORAGE),
)


def kind_of_aws(usage_type: str) -> BillKind:
    """Return what a usage type of AWS is for."""
    return _first(_AWS_KINDS, usage_type)


def kind_of_google(sku: str) -> BillKind:
    """Return what a SKU of Google Cloud is for, by its description."""
    return _first(_GOOGLE_KINDS, sku)


def _compiled(
    rules: tuple[tuple[str, BillKind], ...], flags: int = 0
) -> list[tuple[re.Pattern[str], BillKind]]:
    return [(re.compile(words, flags), kind) for words, kind in rules]


_AWS_KINDS = _compiled(_AWS)
_GOOGLE_KINDS = _compiled(_GOOGLE, re.IGNORECASE)


def _first(rules: list[tuple[re.Pattern[str], BillKind]], name: str) -> BillKind:
    return next((kind for words, kind in rules if words.search(name)), BillKind.OTHER)
