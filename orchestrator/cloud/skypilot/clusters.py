"""What SkyPilot knows of a launch and its cluster, beyond what it tells a strategy."""

from __future__ import annotations

from datetime import datetime, timezone

_LONGEST = 300


def describe(error: BaseException) -> str:
    """Return the reason of a failed launch in one line, in the clouds' own words."""
    reasons = [str(one) for one in getattr(error, "failover_history", None) or [error]]
    line = " ".join(" ".join(dict.fromkeys(reasons)).split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def is_capacity(error: BaseException | None) -> bool:
    """Say whether clouds were asked and refused; anything else would fail elsewhere as well.

    See the handling of failover_history in StrategyExecutor._launch.
    """
    from sky import exceptions

    return isinstance(error, exceptions.ResourcesUnavailableError) and bool(error.failover_history)


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
