"""The options of `orchestrate serve` that are of use on clouds only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator.cli.common import Amount
from orchestrator.offers import MarketPreference

Command = TypeVar("Command", bound=Callable[..., Any])
MOST_REPLICAS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudOptions:
    """What the command line says of a service on clouds."""

    store: str | None
    replicas: int
    max_concurrent: int | None
    max_queued: int | None
    name: str | None
    accelerators: str | None
    infra: str | None
    max_replicas: int | None
    requests_per_replica: float | None
    market: str
    tls_key: Path | None
    tls_certificate: Path | None
    yes: bool
    as_json: bool
    status: bool
    down: bool


def cloud_options(command: Command) -> Command:
    """Add the options that are of use on clouds only; their names are those of CloudOptions."""
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    kinds = click.Choice([one.value for one in MarketPreference])
    for option in (
        click.option("--down", is_flag=True, help="End the services that are named instead."),
        click.option(
            "--status", is_flag=True, help="Show services instead; all, if none is named."
        ),
        click.option("--json", "as_json", is_flag=True, help="With --status: one JSON document."),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--tls-certificate", type=file, help="On clouds: what proves the address."),
        click.option("--tls-key", type=file, help="On clouds: without it the key goes in clear."),
        click.option(
            "--market",
            type=kinds,
            default=MarketPreference.SPOT_WITH_FALLBACK.value,
            show_default=True,
            help="On clouds: how replicas are bought.",
        ),
        click.option(
            "--requests-per-replica",
            type=Amount(1e6, is_above=True),
            metavar="PER_SECOND",
            help="On clouds: above it there is another replica, up to --max-replicas.",
        ),
        click.option(
            "--max-replicas",
            type=click.IntRange(1, MOST_REPLICAS),
            help="On clouds: most replicas.",
        ),
        click.option("--infra", metavar="CLOUD,...", help="On clouds: which; default all enabled."),
        click.option("--accelerators", metavar="KIND:COUNT", help="On clouds: GPUs of a replica."),
        click.option("--name", help="On clouds: the service's name; default the first model's."),
    ):
        command = option(command)
    return command


def refuse_given(names: Sequence[str], when: str) -> None:
    """Raise click.UsageError if an option was given that is of use only `when`."""
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} is only of use {when}.")
