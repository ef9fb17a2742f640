"""`orchestrate serve` without --local: a service on clouds, started, looked at and ended."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.cli.common import confirm, plain, print_json, progress, say
from orchestrator.cli.serve_options import CloudOptions
from orchestrator.cli.serving_texts import render_service_plan, render_status, status_document
from orchestrator.clock import SystemClock
from orchestrator.errors import UsageError
from orchestrator.offers import MarketPreference
from orchestrator.runs import open_store_at
from orchestrator.spec import CLOUDS, suggest

if TYPE_CHECKING:
    from orchestrator.serving.cloud_models import OfFolder, OfRun
    from orchestrator.serving.plan import Replicas, ServicePlan

_KEY = "ORCHESTRATE_SERVE_API_KEY"
# Of a replica; a GPU batches far more than the processors of one machine.
_CONCURRENT, _QUEUED_PER_CONCURRENT = 64, 4
# SkyPilot's names of clusters, which replicas' begin with; the longest cloud takes 63 for a label.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")


def serve_on_clouds(texts: Sequence[str], options: CloudOptions) -> None:
    """Do what the command line says, other than to serve on this machine."""
    if options.status and options.down:
        raise click.UsageError("--status or --down, not both.")
    if options.status or options.down:
        for text in texts:
            if _NAME.fullmatch(text) is None:  # SkyPilot may take a minute to say so
                raise UsageError(
                    f"{text!r:.80} cannot be a service's name.", "See: orchestrate serve --status"
                )
    if options.status:
        _show(texts, as_json=options.as_json)
    elif options.as_json:
        raise click.UsageError("--json goes with --status.")
    elif not texts:
        raise click.UsageError("Missing argument 'MODEL...'.")
    elif options.down:
        _end(texts, yes=options.yes)
    else:
        _start(texts, options)


def _start(texts: Sequence[str], options: CloudOptions) -> None:
    # SkyPilot answers in seconds; what can be refused without it is, and first.
    from orchestrator.cloud.skypilot.service import list_services
    from orchestrator.serving.cloud_models import find_cloud_models
    from orchestrator.serving.plan import read_accelerators, require_room, what_fits

    key = _api_key()
    if (options.tls_key is None) != (options.tls_certificate is None):
        raise UsageError("--tls-key and --tls-certificate go together.", "Give both, or neither.")
    models = find_cloud_models(texts, options.store)
    weights = [model.num_weight_bytes for model in models]
    if options.accelerators is None:
        raise UsageError(
            "Which GPUs a replica is to have is for you to say: --accelerators KIND:COUNT.",
            f"What would fit: {what_fits(weights)}.",
        )
    accelerators = read_accelerators(options.accelerators)
    require_room(accelerators, weights)
    replicas = _replicas(options)
    service = _service_name(options.name or models[0].name)
    say("Asking SkyPilot which clouds it can use, and what it serves ...")
    if list_services([service]):
        raise UsageError(
            f"There is a service {service} already.",
            f"Choose another --name, or end it: orchestrate serve --down {service}",
        )
    plan = _plan(service, accelerators, replicas, options.infra)
    sizes = {model.name: model.num_weight_bytes for model in models}
    say(render_service_plan(plan, sizes))
    confirm(f"Serve until orchestrate serve --down {service}?", yes=options.yes)
    endpoint = _bring_up(plan, models, key, options)
    _tell(service, endpoint, models[0].name)


def _api_key() -> str:
    key = os.environ.get(_KEY)
    if not key:
        raise UsageError(
            "A service on clouds can be reached by anybody, and no key is set.",
            f"export {_KEY}=$(openssl rand -hex 24)",
        )
    return key


def _service_name(wanted: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{wanted!r} cannot be a service's name.",
            "Give another: --name, of up to 40 letters, digits and dashes.",
        )
    return name


def _plan(service: str, accelerators: str, replicas: Replicas, infra: str | None) -> ServicePlan:
    from orchestrator.cloud.skypilot.service import enabled_clouds
    from orchestrator.serving.plan import plan_service

    asked = CLOUDS if infra is None else tuple(infra.split(","))
    for cloud in asked:
        if cloud not in CLOUDS:
            raise UsageError(
                f"--infra: unknown cloud {cloud!r}{suggest(cloud, CLOUDS)}",
                f"Known: {', '.join(CLOUDS)}.",
            )
    enabled = enabled_clouds()
    clouds = [cloud for cloud in asked if cloud in enabled]
    if not clouds:
        raise UsageError(
            f"SkyPilot can use none of {', '.join(asked)}.",
            "See why: sky check; orchestrate doctor",
        )
    return plan_service(service, accelerators, clouds, replicas)


def _replicas(options: CloudOptions) -> Replicas:
    from orchestrator.serving.plan import Replicas

    least, most = options.replicas, options.max_replicas or options.replicas
    if most < least:
        raise UsageError(
            f"--max-replicas {most} is less than --replicas {least}.", "Give as many, or more."
        )
    if (most > least) != (options.requests_per_replica is not None):
        raise UsageError(
            "More replicas come with more requests: --max-replicas above --replicas goes with "
            "--requests-per-replica.",
            "Give both, or neither.",
        )
    return Replicas(
        least=least,
        most=most,
        requests_per_s=options.requests_per_replica,
        market=MarketPreference(options.market),
    )


def _bring_up(
    plan: ServicePlan, models: Sequence[OfRun | OfFolder], key: str, options: CloudOptions
) -> str:
    """Stage what replicas fetch, start the service and return its address."""
    from orchestrator.cloud.skypilot.launcher import stage_wheel
    from orchestrator.cloud.skypilot.service import Certificate, build_service, start_service
    from orchestrator.ledger.facts import QuotedOffer
    from orchestrator.serving.service import ServiceRecord, create_service

    staged = []
    for model in models:
        say(f"Bringing {model.name} into its bucket, unless it is there ...")
        with progress(model.name, model.num_weight_bytes) as advance:
            staged.append(model.stage(advance))
    folder = open_store_at(staged[0].folder)
    wheel = stage_wheel(folder)
    at_once = options.max_concurrent or _CONCURRENT
    record = ServiceRecord(
        service=plan.service,
        service_id=f"{plan.service}-{secrets.token_hex(4)}",
        created_at=SystemClock().now(),
        models=tuple(staged),
        offers=tuple(QuotedOffer.quote(one) for one in plan.offers),
        max_concurrent=at_once,
        max_queued=_QUEUED_PER_CONCURRENT * at_once
        if options.max_queued is None
        else options.max_queued,
    )
    create_service(folder, record)
    certificate = None
    if options.tls_key is not None and options.tls_certificate is not None:
        certificate = Certificate(key=options.tls_key, certificate=options.tls_certificate)
    task = build_service(record, wheel, plan, api_key=key, certificate=certificate)
    say("Starting the service; where SkyServe has no controller yet, that is minutes ...")
    return start_service(task, plan.service)


def _tell(service: str, endpoint: str, model: str) -> None:
    print(f"{endpoint}/v1")
    say(f"{service} comes up: some minutes until the first replica answers.")
    say(f"Watch it: orchestrate serve --status {service}; sky serve logs {service} 1")
    say(
        f'Try it: curl {endpoint}/v1/chat/completions -H "Authorization: Bearer ${_KEY}" '
        f"-H 'Content-Type: application/json' -d "
        f'\'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
    if endpoint.startswith("http://"):
        say("The key goes there in clear: --tls-key and --tls-certificate would hide it.")
    say(f"It costs money until: orchestrate serve --down {service}")


def _show(services: Sequence[str], *, as_json: bool) -> None:
    from orchestrator.cloud.skypilot.service import list_services

    found = list_services(services or None)
    if as_json:
        print_json(status_document(found))
        return
    for service in found:
        print(plain(render_status(service)))
    if not found:
        say(f"SkyServe has no service {' '.join(services)}".rstrip() + ".")
        say("Start one: orchestrate serve MODEL...")


def _end(services: Sequence[str], *, yes: bool) -> None:
    from orchestrator.cloud.skypilot.service import list_services, stop_service

    known = {one.service for one in list_services(services)}
    missing = [name for name in services if name not in known]
    if missing:
        raise UsageError(
            f"SkyServe has no service {missing[0]}.", "See: orchestrate serve --status"
        )
    confirm(f"End {', '.join(services)} and every replica, whatever it answers?", yes=yes)
    for name in services:
        stop_service(name)
        say(f"{name} is being ended. See: orchestrate serve --status {name}")
