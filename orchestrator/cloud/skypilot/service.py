"""Services on clouds by SkyServe: fill in sky/serve.yaml, start, list and stop.

SkyServe's controller keeps the replicas, and its load balancer is the address that users have.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from orchestrator.billing.tags import SERVICE_TAG, tag_of
from orchestrator.cloud.skypilot import environment
from orchestrator.cloud.skypilot.client import name_of, require_skypilot, translated
from orchestrator.cloud.skypilot.task import (
    STORE_SECRETS,
    default_region,
    forwarded,
    read_task,
    settings,
)
from orchestrator.inputs import InputFile
from orchestrator.offers import Market, MarketPreference
from orchestrator.serving.plan import Replicas, ServicePlan
from orchestrator.serving.service import ServiceRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Files by which the load balancer speaks HTTPS."""

    key: Path
    certificate: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """One replica as SkyServe knows it."""

    replica: int
    status: str
    place: str | None
    is_spot: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One service as SkyServe knows it."""

    service: str
    status: str
    endpoint: str | None
    ready_since: datetime | None
    """When its first replica was ready."""
    replicas: tuple[ReplicaStatus, ...]


def build_service(
    record: ServiceRecord,
    wheel: InputFile,
    plan: ServicePlan,
    *,
    api_key: str,
    certificate: Certificate | None = None,
) -> Any:  # noqa: ANN401  # sky.Task
    """Return the task of a service, whose replicas go to the places of the plan's offers."""
    sky = require_skypilot()
    config = read_task("serve.yaml")
    config["name"] = record.service
    config["service"]["replica_policy"] |= _policy(plan.replicas)
    if plan.replicas.market is MarketPreference.ON_DEMAND:
        # SkyServe allows neither without spot.
        for name in ("dynamic_ondemand_fallback", "base_ondemand_fallback_replicas", "spot_placer"):
            del config["service"]["replica_policy"][name]
    if certificate is not None:
        config["service"]["tls"] = {
            "keyfile": str(certificate.key.absolute()),
            "certfile": str(certificate.certificate.absolute()),
        }
    config["envs"] |= {
        **settings(environment.STORE_SETTINGS),
        **default_region(),
        environment.SERVICE_FOLDER: record.models[0].folder,
        environment.SERVICE: record.service_id,
        environment.WHEEL: wheel.name,
        environment.WHEEL_SHA256: wheel.sha256,
    }
    config["secrets"] = {environment.API_KEY: api_key, **forwarded(STORE_SECRETS)}
    config["resources"] |= {
        "accelerators": plan.accelerators,
        "use_spot": plan.replicas.market.allows(Market.SPOT),
        "labels": {SERVICE_TAG: tag_of(record.service_id)},
        # No machine is named: all have to be alike but for the place, or SkyServe's placer refuses.
        "any_of": [{"infra": place} for place in _places(plan)],
    }
    return sky.Task.from_yaml_config(config)


def _policy(replicas: Replicas) -> dict[str, Any]:
    policy: dict[str, Any] = {
        "min_replicas": replicas.least,
        "max_replicas": replicas.most,
        "dynamic_ondemand_fallback": replicas.market is MarketPreference.SPOT_WITH_FALLBACK,
    }
    if replicas.requests_per_s is not None:
        policy["target_qps_per_replica"] = replicas.requests_per_s
    return policy


def _places(plan: ServicePlan) -> list[str]:
    """Return cloud/region of the offers, cheapest first; zones are left to SkyPilot."""
    return list(dict.fromkeys("/".join(one.place) for one in plan.offers))


def enabled_clouds() -> tuple[str, ...]:
    """Return the clouds that SkyPilot's server can use."""
    with translated():
        sky = require_skypilot()
        from sky.client import sdk

        found = sky.get(sdk.enabled_clouds())
        if not found:  # a server that has not looked yet
            sky.get(sdk.check(infra_list=None, verbose=False))
            found = sky.get(sdk.enabled_clouds())
        return tuple(str(name).lower() for name in found)


def start_service(task: Any, service: str) -> str:  # noqa: ANN401  # sky.Task
    """Start a service and return its address; its replicas come up afterwards.

    SkyServe's controller is started first where there is none, which takes minutes.
    """
    with translated():
        sky = require_skypilot()
        from sky import serve

        # It prints what it considers; stdout is for the result.
        with redirect_stdout(sys.stderr):
            _, endpoint = sky.get(serve.up(task, service))
        return str(endpoint)


def stop_service(service: str) -> None:
    """Terminate a service with all its replicas, without a word to them."""
    with translated():
        sky = require_skypilot()
        from sky import serve

        sky.get(serve.down([service]))


def list_services(services: Sequence[str] | None = None) -> list[ServiceStatus]:
    """Return the named services, or all of them; those that there are not are left out."""
    with translated():
        sky = require_skypilot()
        from sky import exceptions, serve

        try:
            found = sky.get(serve.status(None if services is None else list(services)))
        except exceptions.ClusterNotUpError as error:
            if getattr(error.cluster_status, "value", None) not in (None, "STOPPED"):
                raise  # there is a controller, which does not answer
            return []  # there has never been one, or it sleeps for want of services
    return [_service(one) for one in found]


def _service(found: dict[str, Any]) -> ServiceStatus:
    return ServiceStatus(
        service=str(found["name"]),
        status=str(name_of(found["status"])),
        endpoint=found.get("endpoint"),
        ready_since=_instant(found.get("uptime")),
        replicas=tuple(
            ReplicaStatus(
                replica=int(one["replica_id"]),
                status=str(name_of(one["status"])),
                place=one.get("infra"),
                is_spot=bool(one.get("is_spot")),
            )
            for one in found["replica_info"]
        ),
    )


def _instant(uptime: int | None) -> datetime | None:
    """Return the instant that SkyServe calls its uptime (0.14.1: seconds of the epoch)."""
    return datetime.fromtimestamp(uptime, timezone.utc) if uptime else None
