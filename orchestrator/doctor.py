"""Look for what would fail at a launch, or cost more than it should, before there is one."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from checkpoints.errors import CheckpointError
from checkpoints.layout import CHECKPOINTS
from checkpoints.probe import check_conditional_writes
from checkpoints.regular_files import read_regular
from orchestrator import __version__
from orchestrator.agent.tracking import has_key
from orchestrator.doctor_clouds import examine_clouds
from orchestrator.errors import OrchestratorError, SpecError
from orchestrator.finding import Finding, Verdict, failed, ok, warning
from orchestrator.memory import require_memory
from orchestrator.notify.readiness import known_addresses, what_is_missing
from orchestrator.offers import Offer, PriceTable, list_offers
from orchestrator.places import require_reachable
from orchestrator.prices import price_table
from orchestrator.runs import open_store_at
from orchestrator.spec import RunSpec

# Where SkyPilot's settings of this machine are.
_SKY_CONFIG = "SKYPILOT_GLOBAL_CONFIG"
_MOST_CONFIG_BYTES = 1 << 20


def examine(spec: RunSpec | None, *, offline: bool = False) -> Iterator[Finding]:
    """Yield a finding after each check, of this machine and of what `spec` needs.

    Stores are tried all the same if `offline`; clouds and SkyPilot's API server are not asked.
    """
    yield from _packages(spec)
    if spec is None:
        return
    try:
        require_reachable(spec)
    except SpecError as error:
        yield failed("store", error)
    else:
        for url in store_urls(spec):
            yield _store(url)
    if not spec.is_local:
        yield _memory(spec)
        table = price_table(spec, offline=offline)
        offers = _offers(spec, table)
        yield _prices(table, offers)
        yield from _sky_config(spec)
        on_offer = offers if isinstance(offers, tuple) else ()
        yield from examine_clouds(spec, on_offer, store_urls(spec), offline=offline)
    if spec.tracking.wandb is not None:
        yield _wandb()
    if spec.tracking.notify is not None:
        yield _notifications(spec)


def store_urls(spec: RunSpec) -> list[str]:
    """Return every store that runs of the spec use, the run's own first."""
    return list(dict.fromkeys([spec.store, *spec.checkpoints.stores.values()]))


def _packages(spec: RunSpec | None) -> Iterator[Finding]:
    found = f"orchestrate {__version__}, Python {platform.python_version()}"
    yield Finding(check="version", verdict=Verdict.OK, what=found)
    is_cloud = spec is not None and not spec.is_local
    needed = {"skypilot": is_cloud, "torch": not is_cloud, "wandb": False}
    for package, is_needed in needed.items():
        try:
            what = f"{package} {version(package)}"
            yield Finding(check="packages", verdict=Verdict.OK, what=what)
        except PackageNotFoundError:
            extra = "sky" if package == "skypilot" else "train"
            yield Finding(
                check="packages",
                verdict=Verdict.WARNING if is_needed else Verdict.OK,
                what=f"{package} is not installed",
                next_step=f"pip install 'spot-orchestrator[{extra}]'" if is_needed else None,
            )


def _store(url: str) -> Finding:
    try:
        store = open_store_at(url)
        check_conditional_writes(store)
        store.abort_uploads(CHECKPOINTS, lambda key: False)
    except (CheckpointError, OrchestratorError) as error:
        return failed("store", error)
    what = f"{url} can be read and written, and honours conditional writes"
    return Finding(check="store", verdict=Verdict.OK, what=what)


def _memory(spec: RunSpec) -> Finding:
    try:
        memory = require_memory(spec)
    except OrchestratorError as error:
        return failed("memory", error)
    if memory is None:
        what = f"the size of {spec.model.base} is not known from its name"
        return Finding(check="memory", verdict=Verdict.WARNING, what=what)
    what = f"about {memory.needed / 1e9:.0f} of {memory.available / 1e9:.0f} GB per GPU"
    return Finding(check="memory", verdict=Verdict.OK, what=what)


def _offers(spec: RunSpec, table: PriceTable) -> tuple[Offer, ...] | SpecError:
    try:
        return list_offers(table, spec.nodes.accelerators, spec.clouds, spec.limits.market)
    except SpecError as error:
        return error


def _prices(table: PriceTable, offers: tuple[Offer, ...] | SpecError) -> Finding:
    if isinstance(offers, SpecError):
        return failed("prices", offers)
    clouds = sorted({offer.cloud for offer in offers})
    what = f"{len(offers)} offers in {', '.join(clouds)}: {table}"
    if table.as_of is None:
        return Finding(
            check="prices",
            verdict=Verdict.WARNING,
            what=what,
            next_step="Have SkyPilot fetch today's: sky check",
        )
    return Finding(check="prices", verdict=Verdict.OK, what=what)


def _sky_config(spec: RunSpec) -> Iterator[Finding]:
    """Yield what SkyPilot's defaults give away or risk on a laptop.

    See remote_identity and consolidation_mode in SkyPilot's reference of its configuration.
    """
    path = Path(os.environ.get(_SKY_CONFIG) or "~/.sky/config.yaml").expanduser()
    try:
        config = yaml.safe_load(read_regular(path, _MOST_CONFIG_BYTES).decode())
    except FileNotFoundError:
        config = None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        line = str(error).splitlines()[0]
        yield Finding(check="skypilot", verdict=Verdict.FAILED, what=f"{path}: {line}")
        return
    for cloud in spec.clouds or ():
        if cloud in ("aws", "gcp") and _get(config, cloud, "remote_identity") is None:
            yield Finding(
                check="skypilot",
                verdict=Verdict.WARNING,
                what=f"nodes on {cloud} receive this machine's credentials",
                next_step=f"Set {cloud}.remote_identity in {path}",
            )
    if _get(config, "jobs", "controller", "consolidation_mode") is True:
        yield Finding(
            check="skypilot",
            verdict=Verdict.WARNING,
            what="jobs.controller.consolidation_mode: recovery ends when this machine sleeps",
            next_step=f"Remove it from {path}, unless the API server runs elsewhere",
        )


def _wandb() -> Finding:
    if has_key():
        return Finding(check="wandb", verdict=Verdict.OK, what="a W&B key was found")
    return Finding(
        check="wandb",
        verdict=Verdict.WARNING,
        what="no W&B key: the run is recorded offline",
        next_step="wandb login, or set WANDB_API_KEY",
    )


def _notifications(spec: RunSpec) -> Finding:
    try:
        unheard = what_is_missing(spec)
        names = [address.name for address in known_addresses()] if unheard is None else []
    except OrchestratorError as error:
        return failed("notify", error)
    if unheard is not None:
        return warning("notify", unheard)
    send = "to send a test message: orchestrate doctor --notify"
    return ok("notify", f"notifications go to {', '.join(names)}; {send}")


def _get(config: object, *keys: str) -> object:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config
