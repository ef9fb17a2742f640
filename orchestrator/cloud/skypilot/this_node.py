"""What a node finds out about itself where nobody told it: what it is billed as, and since when."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone

import psutil

from orchestrator.agent.whereabouts import find_offer, find_whereabouts
from orchestrator.ledger.facts import QuotedOffer

_CLUSTER = "SKYPILOT_CLUSTER_INFO"
# A machine that has been up for longer was not started for what it does now.
_LONGEST_SETUP = timedelta(hours=1)


def cloud_of_this_node(variables: Mapping[str, str]) -> str | None:
    """Return the cloud as SkyPilot says, None where it says none whose metadata is known here."""
    try:
        cloud = str(json.loads(variables.get(_CLUSTER, ""))["cloud"]).lower()
    except (ValueError, KeyError, TypeError):
        return None
    return cloud if cloud in ("aws", "gcp", "azure") else None


def offer_of_this_node(offers: Sequence[QuotedOffer], variables: Mapping[str, str]) -> QuotedOffer:
    """Return which of the quoted offers SkyPilot took for this node."""
    return find_offer(offers, find_whereabouts(cloud_of_this_node(variables)))


def started_for_this(now: datetime) -> datetime:
    """Return when this machine came up for what it does now, which is when its bill began."""
    booted = datetime.fromtimestamp(psutil.boot_time(), timezone.utc)
    return booted if timedelta() <= now - booted <= _LONGEST_SETUP else now
