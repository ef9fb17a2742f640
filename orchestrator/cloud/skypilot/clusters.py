"""What SkyPilot knows of a launch and its cluster, beyond what it tells a strategy."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from enum import Enum

_LONGEST = 300
# Codes and words of clouds and of SkyPilot 0.14.1 (cloud_vm_ray_backend.py), as they come in texts.
_QUOTA = re.compile(
    r"QUOTA_?EXCEEDED|Quota '[^']*' exceeded|QuotaFailure|Found no quota|VcpuLimitExceeded"
    r"|MaxSpotInstanceCountExceeded|InstanceLimitExceeded|exceeding approved \S* ?cores quota",
    re.IGNORECASE,
)
# Not "not found or access is unauthorized", which Google says of single zones.
_ACCESS = re.compile(
    r"invalid cloud credentials|invalid cloud config|AuthFailure|InvalidClientTokenId"
    r"|UnrecognizedClient|ExpiredToken|RequestExpired|UnauthorizedOperation|PERMISSION_DENIED"
    r"|Policy update access denied|AuthorizationFailed|ClientAuthenticationError"
    r"|ReadOnlyDisabledSubscription"
)


class Refusal(str, Enum):
    """What kept a cloud from giving nodes."""

    NO_ROOM = "no room"
    NO_QUOTA = "over the account's quota"
    """For us the place has no room; more is given on demand, or when other nodes are gone."""
    NO_ACCESS = "the account is refused"
    OTHER = "something else"


def why_refused(error: BaseException | None) -> Refusal:
    """Tell apart what time mends and what it does not, by the clouds' own words.

    A launch asks one place; of several reasons a lack of room counts most. SkyPilot, too, waits
    only where there is one among them (StrategyExecutor._launch).
    """
    from sky import exceptions

    if not isinstance(error, exceptions.ResourcesUnavailableError):
        return Refusal.OTHER
    lacking = exceptions.ResourcesUnavailableError
    reasons = [str(one) for one in error.failover_history if isinstance(one, lacking)]
    if not reasons:
        is_ours = isinstance(next(iter(error.failover_history), None), _identity_errors())
        return Refusal.NO_ACCESS if is_ours else Refusal.OTHER
    if all(_ACCESS.search(reason) for reason in reasons):
        return Refusal.NO_ACCESS
    is_quota = all(_QUOTA.search(reason) or _ACCESS.search(reason) for reason in reasons)
    return Refusal.NO_QUOTA if is_quota else Refusal.NO_ROOM


def describe(error: BaseException) -> str:
    """Return the reason of a failed launch in one line, in the clouds' own words.

    What is not the usual lack of room comes first.
    """
    reasons = [str(one) for one in getattr(error, "failover_history", None) or [error]]
    line = " ".join(" ".join(dict.fromkeys(reasons)).split())
    refusal = why_refused(error)
    if refusal in (Refusal.NO_QUOTA, Refusal.NO_ACCESS):
        line = f"{refusal.value}: {line}"
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _identity_errors() -> tuple[type[Exception], ...]:
    from sky import exceptions

    return (exceptions.CloudUserIdentityError, exceptions.InvalidCloudCredentials)


def count_instances(cluster_name: str) -> int:
    """Return how many nodes of a cluster are running, by the cloud's own word; 0 if unknown.

    Raises whatever the cloud's client does.
    """
    from sky import global_user_state, provision
    from sky.utils import status_lib

    cluster = global_user_state.get_handle_from_cluster_name(cluster_name)
    if cluster is None or cluster.cluster_yaml is None:
        return 0
    config = global_user_state.get_cluster_yaml_dict(cluster.cluster_yaml)
    found = provision.query_instances(
        repr(cluster.launched_resources.cloud),
        cluster_name,
        cluster.cluster_name_on_cloud,
        config["provider"],
    )
    return sum(1 for status, _ in found.values() if status is status_lib.ClusterStatus.UP)


def up_since(cluster_name: str, since: float) -> datetime | None:
    """Return when SkyPilot saw all nodes of a launch running, of a launch asked for at `since`.

    Its events outlive the cluster; they hold whole seconds.
    """
    from sky import global_user_state

    events = global_user_state.get_cluster_events_by_name(
        cluster_name, [global_user_state.ClusterEventType.STATUS_CHANGE], limit=100
    )
    seen = [
        float(event["transitioned_at"])
        for event in events
        if str(event["reason"]).startswith("Instances launched")
    ]
    fresh = [instant for instant in seen if instant >= int(since)]
    return datetime.fromtimestamp(min(fresh), timezone.utc) if fresh else None


def zone_of(cluster_name: str) -> str | None:
    """Return the zone that a cluster was given; None where it is gone, or its cloud has none."""
    from sky import global_user_state

    cluster = global_user_state.get_handle_from_cluster_name(cluster_name)
    return None if cluster is None else cluster.launched_resources.zone
