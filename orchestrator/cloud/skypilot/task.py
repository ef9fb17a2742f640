"""Fill in sky/train.yaml for one run: where, at what price, with which code and which secrets."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from orchestrator.billing.tags import tags_of
from orchestrator.cloud.skypilot import environment
from orchestrator.cloud.skypilot.client import require_skypilot
from orchestrator.cloud.skypilot.offers import resources_for
from orchestrator.errors import UsageError
from orchestrator.inputs import InputFile
from orchestrator.ledger.record import RunRecord
from orchestrator.notify.addresses import NOTIFY
from orchestrator.offers import Market, Offer
from orchestrator.redact import redact
from orchestrator.runs import run_folder_url

# Forwarded where they are set: secrets only as secrets, which SkyPilot keeps out of logs and YAML.
STORE_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_SECRETS = ("WANDB_API_KEY", "HF_TOKEN", *STORE_SECRETS)
_SETTINGS = (
    *environment.STORE_SETTINGS,
    *("WANDB_BASE_URL", "WANDB_MODE", "HF_ENDPOINT"),
    *(environment.RANKS, environment.AGENT),
)


def build_task(
    record: RunRecord,
    wheel: InputFile,
    offers: Sequence[Offer],
    *,
    launched_at: datetime,
    has_strategy: bool,
    addresses: str | None = None,
) -> Any:  # noqa: ANN401  # sky.Task
    """Return the task of a run; `offers` in the order in which they are to be tried.

    With our strategy on the server it picks the offer of each launch; without, SkyPilot takes the
    first in the list that has room. `addresses` are those of the run's notifications; the strategy
    sends them, and without it node 0.
    """
    sky = require_skypilot()
    config = read_task("train.yaml")
    config["name"] = record.run_id
    config["num_nodes"] = record.spec.nodes.count
    config["envs"] = {**config["envs"], **_environment(record, wheel, launched_at)}
    config["secrets"] = forwarded(_SECRETS)
    if addresses is not None:
        config["secrets"][NOTIFY] = addresses
        if not has_strategy:
            config["envs"][environment.EXTRAS] += ",notify"
    task = sky.Task.from_yaml_config(config)
    requested = next(iter(task.resources))
    if has_strategy:
        requested = requested.copy(job_recovery={"strategy": environment.STRATEGY})
        offers = offers[:1]
    # A list is tried in order; a set would be any of them.
    tags = tags_of(record.run_id)
    task.set_resources([resources_for(offer, requested, tags) for offer in _by_region(offers)])
    return task


def _by_region(offers: Sequence[Offer]) -> list[Offer]:
    """Leave the zone to SkyPilot, which fails over between zones by itself."""
    first: dict[tuple[str, str, Market], Offer] = {}
    for offer in offers:
        first.setdefault((*offer.place, offer.market), replace(offer, zone=offer.region))
    return list(first.values())


def read_task(name: str) -> dict[str, Any]:
    """Return a task file's content: from the wheel, or from the checkout."""
    # 30 ms, and launching is the only command that needs it.
    import yaml

    packed = resources.files("orchestrator").joinpath("tasks").joinpath(name)
    checkout = Path(__file__).parents[3] / "sky" / name
    text = (packed if packed.is_file() else checkout).read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


def forwarded(names: Sequence[str], source: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that are set; not the keys of a session, which ends before the run."""
    if source.get("AWS_SESSION_TOKEN"):
        names = [name for name in names if not name.startswith("AWS_")]
    return {name: source[name] for name in names if source.get(name)}


def settings(names: Sequence[str]) -> dict[str, str]:
    """Return the variables that are set and no secrets; raise UsageError for one that holds one."""
    found = forwarded(names)
    for name, value in found.items():
        if redact(value) != value:
            raise UsageError(
                f"{name} holds a password or a key, and is shown with the task.",
                "Leave it out of the address: keys have variables of their own.",
            )
    return found


def default_region() -> dict[str, str]:
    """Return the region of this machine's AWS settings, by the name that all programs read."""
    region = os.environ.get("AWS_REGION")
    return {"AWS_DEFAULT_REGION": region} if region else {}


def _environment(record: RunRecord, wheel: InputFile, launched_at: datetime) -> dict[str, str]:
    return {
        **settings(_SETTINGS),
        **default_region(),
        environment.RUN_FOLDER: run_folder_url(record.spec.store, record.run),
        environment.JOB: secrets.token_hex(8),
        environment.LAUNCHED_AT: launched_at.isoformat(),
        environment.WHEEL: wheel.name,
        environment.WHEEL_SHA256: wheel.sha256,
        environment.EXTRAS: "train,gpu" if record.spec.train.liger else "train",
    }
