"""SkyPilot's provisioner for the cell: the functions of sky/provision/aws/instance.py.

SkyPilot's clouds, catalogs, optimizer and templates are untouched; only what would ask a cloud for
machines asks the cell's daemon.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from sky.provision import common
from sky.utils import status_lib

from tests.cell.places import Places
from tests.cell.records import Instance, Launch, Nothing, State, Terminate
from tests.cell.wire import Refused, ask

_INSTANCES = TypeAdapter(list[Instance])
_LOOK_S = 0.2


class NoCapacityError(RuntimeError):
    """What botocore's InsufficientInstanceCapacity is to SkyPilot: it blocks the zone."""


class CellProvisioner:
    """One cloud's provisioner; SkyPilot takes it for a module."""

    def __init__(self, cloud: str) -> None:
        self._cloud = cloud
        self._socket = Places(Path(os.environ["CELL_BASE"])).socket

    def bootstrap_instances(self, region: str, cluster_name: str, config: Any) -> Any:
        """Return the configuration as it is: there is no network or role to create."""
        return config

    def run_instances(
        self, region: str, cluster_name: str, cluster_name_on_cloud: str, config: Any
    ) -> common.ProvisionRecord:
        """Have the cluster have `config.count` instances."""
        living = self._living(cluster_name_on_cloud, region)
        created: list[Instance] = []
        if config.count > len(living):
            created = self._launch(
                region, cluster_name_on_cloud, config, config.count - len(living)
            )
        everyone = living + created
        return common.ProvisionRecord(
            provider_name=self._cloud,
            region=region,
            zone=everyone[0].zone,
            cluster_name=cluster_name_on_cloud,
            head_instance_id=next(one.id for one in everyone if one.head),
            resumed_instance_ids=[],
            created_instance_ids=[one.id for one in created],
        )

    def wait_instances(self, region: str, cluster_name_on_cloud: str, state: Any) -> None:
        """Return when all run; an instance that was lost meanwhile is an error."""
        if state != status_lib.ClusterStatus.UP:
            return
        wanted = len(self._living(cluster_name_on_cloud, region))
        while wanted:
            living = self._living(cluster_name_on_cloud, region)
            if len(living) < wanted:
                break
            if all(one.state is State.RUNNING for one in living):
                return
            time.sleep(_LOOK_S)
        raise RuntimeError(f"{cluster_name_on_cloud} lost an instance while it started")

    def query_instances(
        self,
        cluster_name: str,
        cluster_name_on_cloud: str,
        provider_config: dict[str, Any],
        non_terminated_only: bool = True,
        retry_if_missing: bool = False,
    ) -> dict[str, tuple[Any, None]]:
        """Return the status of the cluster's instances by id."""
        status = {
            State.PENDING: status_lib.ClusterStatus.INIT,
            State.RUNNING: status_lib.ClusterStatus.UP,
            State.TERMINATED: None,
        }
        return {
            one.id: (status[one.state], None)
            for one in self._all(cluster_name_on_cloud, provider_config["region"])
            if one.is_alive or not non_terminated_only
        }

    def stop_instances(self, cluster_name_on_cloud: str, *_: Any, **__: Any) -> None:
        """Refuse: spot instances cannot be stopped."""
        raise NotImplementedError("instances of the cell cannot be stopped")

    def terminate_instances(
        self, cluster_name_on_cloud: str, provider_config: Any = None, worker_only: bool = False
    ) -> None:
        """End the cluster's instances."""
        asked = Terminate(cluster=cluster_name_on_cloud, cloud=self._cloud, worker_only=worker_only)
        ask(self._socket, "/terminate", asked)

    def get_cluster_info(
        self, region: str, cluster_name_on_cloud: str, provider_config: Any = None
    ) -> common.ClusterInfo:
        """Return the addresses of the cluster's living instances."""
        living = self._living(cluster_name_on_cloud, region)
        return common.ClusterInfo(
            instances={one.id: [_as_instance_info(one)] for one in living},
            head_instance_id=next((one.id for one in living if one.head), None),
            provider_name=self._cloud,
            provider_config=provider_config,
        )

    def open_ports(self, *_: Any, **__: Any) -> None:
        """Do nothing: every port is open."""

    def cleanup_ports(self, *_: Any, **__: Any) -> None:
        """Do nothing: no port was closed."""

    def _launch(self, region: str, cluster: str, config: Any, count: int) -> list[Instance]:
        is_spot, instance_type, key = _asked(self._cloud, config.node_config)
        request = Launch(
            cluster=cluster,
            cloud=self._cloud,
            region=region,
            zones=tuple(config.provider_config["availability_zone"].split(",")),
            instance_type=instance_type,
            spot=is_spot,
            count=count,
            user=config.authentication_config["ssh_user"],
            public_key=key,
        )
        try:
            return _INSTANCES.validate_json(ask(self._socket, "/launch", request))
        except Refused as refused:
            raise _as_clouds_error(self._cloud, refused) from None

    def _all(self, cluster: str, region: str) -> list[Instance]:
        found = _INSTANCES.validate_json(ask(self._socket, "/instances", Nothing()))
        asked = (self._cloud, cluster, region)
        return [one for one in found if (one.cloud, one.cluster, one.region) == asked]

    def _living(self, cluster: str, region: str) -> list[Instance]:
        return [one for one in self._all(cluster, region) if one.is_alive]


def _asked(cloud: str, node: dict[str, Any]) -> tuple[bool, str, str]:
    """Return whether it is to be spot, the type and the user's public key, as templates say it."""
    if cloud == "aws":
        key = node["UserData"].split("ssh_authorized_keys:")[1].split("|-")[1].strip()
        return "InstanceMarketOptions" in node, node["InstanceType"], key.splitlines()[0].strip()
    scheduling = node.get("scheduling", {})
    is_spot = scheduling.get("preemptible") or scheduling.get("provisioningModel") == "SPOT"
    keys = next(item["value"] for item in node["metadata"]["items"] if item["key"] == "ssh-keys")
    return bool(is_spot), node["machineType"], keys.split(":", 1)[1].strip()


def _as_clouds_error(cloud: str, refused: Refused) -> Exception:
    """Return what the cloud's own provisioner raises, by which SkyPilot knows what to avoid."""
    code, message = refused.refusal.code, refused.refusal.message
    if cloud == "aws":
        called = "when calling the RunInstances operation"
        return NoCapacityError(f"An error occurred ({code}) {called}: {message}")
    error = common.ProvisionerError("No capacity")
    error.errors = [{"code": code, "domain": "create_instances", "message": message}]
    return error


def _as_instance_info(one: Instance) -> common.InstanceInfo:
    return common.InstanceInfo(
        instance_id=one.id, internal_ip=one.ip, external_ip=one.ip, tags={}, node_name=one.id
    )
