"""`orchestrate serve`: models behind one OpenAI-compatible address, until Ctrl-C."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.common import MOST_SECONDS, examples, say, store_option
from orchestrator.cli.completion import complete_model
from orchestrator.cli.listening import look_up
from orchestrator.cli.serve_clouds import serve_on_clouds
from orchestrator.cli.serve_options import MOST_REPLICAS, CloudOptions, cloud_options, refuse_given
from orchestrator.errors import UsageError
from orchestrator.home import home, make_folder
from orchestrator.serving.engines import Engine, choose_engine, num_gpus
from orchestrator.serving.group import Group, starter
from orchestrator.serving.models import ServedModel, find_folder, find_models
from orchestrator.serving.page import Page, check_page_installed, open_page
from orchestrator.serving.processes import free_port, last_line
from orchestrator.serving.router import KEY_VARIABLE, Address, Limits, check_installed

_PORT = 8000
# As many as share a worker's cache of 16,384 tokens with 1,024 each.
_CONCURRENT_PER_WORKER, _QUEUED_PER_CONCURRENT = 16, 4
_MOST_REQUESTS = 100_000
_TICK_S = 0.5
_LOCAL_ONLY = ("host", "port", "engine", "drain_s", "has_page")


@click.command(
    epilog=examples(
        "orchestrate serve --local vicuna-7b base=models/llama-7b --ui",
        "orchestrate serve vicuna-7b --accelerators A100:1 --replicas 2",
        "orchestrate serve --status",
    )
)
@click.argument("models", nargs=-1, metavar="MODEL...", shell_complete=complete_model)
@click.option("--local", "is_local", is_flag=True, help="Serve on this machine.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=_PORT, show_default=True, help="0: a free one."
)
@click.option(
    "--replicas",
    type=click.IntRange(1, MOST_REPLICAS),
    default=1,
    show_default=True,
    help="Workers of each model; on clouds nodes, each with all models.",
)
@click.option(
    "--max-concurrent",
    type=click.IntRange(1, _MOST_REQUESTS),
    help=f"Requests answered at once.  [default: {_CONCURRENT_PER_WORKER} for each worker]",
)
@click.option(
    "--max-queued",
    type=click.IntRange(0, _MOST_REQUESTS),
    help="Requests that wait; more are answered 429.  "
    f"[default: {_QUEUED_PER_CONCURRENT} for each answered at once]",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", *(engine.value for engine in Engine)]),
    default="auto",
    show_default=True,
    help="auto: vllm where it is installed and has a GPU.",
)
@click.option(
    "--drain",
    "drain_s",
    type=click.IntRange(0, MOST_SECONDS),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="What running requests get to finish at the end.",
)
@click.option("--ui", "has_page", is_flag=True, help="Also serve a chat page, for browsers here.")
@store_option
@cloud_options
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    replicas: int,
    max_concurrent: int | None,
    max_queued: int | None,
    engine: str,
    drain_s: int,
    store: str | None,
    *,
    is_local: bool,
    has_page: bool,
    **on_clouds: Any,  # noqa: ANN401  # as click parsed them
) -> None:
    """Serve each MODEL behind one OpenAI-compatible address: on clouds, or --local until Ctrl-C.

    MODEL is [NAME=]WHERE; WHERE is a Hugging Face folder, a RUN (its last checkpoint) or RUN@STEP.

    What clients have to show comes from ORCHESTRATE_SERVE_API_KEY; without it only this machine may
    be served.
    """
    if not is_local:
        refuse_given(_LOCAL_ONLY, "with --local")
        options = CloudOptions(
            store=store,
            replicas=replicas,
            max_concurrent=max_concurrent,
            max_queued=max_queued,
            **on_clouds,
        )
        serve_on_clouds(models, options)
        return
    refuse_given(tuple(on_clouds), "without --local")
    if not models:
        raise click.UsageError("Missing argument 'MODEL...'.")
    check_installed()
    if has_page:
        check_page_installed()
    address = _address(host, port)
    chosen = choose_engine(None if engine == "auto" else Engine(engine), num_gpus=num_gpus())
    at_once = max_concurrent or _CONCURRENT_PER_WORKER * len(models) * replicas
    queued = _QUEUED_PER_CONCURRENT * at_once if max_queued is None else max_queued
    runs = [text for text in models if find_folder(text.rpartition("=")[2]) is None]
    if runs:
        say(f"Exporting {', '.join(runs)}, if that has not been done.")
    served = find_models(models, store)
    make_folder(home() / "serving")
    group = Group(
        models=served,
        replicas=replicas,
        start=starter(chosen),
        address=address,
        limits=Limits(max_concurrent=at_once, max_queued=queued),
        folder=Path(tempfile.mkdtemp(dir=home() / "serving")),
        say=say,
    )
    names = ", ".join(model.name for model in served)
    say(f"Loading {names} with {chosen.value}, {replicas} each; logs in {group.folder}")
    _run(group, timedelta(seconds=drain_s), has_page=has_page)


def _address(host: str, port: int) -> Address:
    """Return where to listen; what others can reach needs a key."""
    _, found = look_up(host, port)
    key = os.environ.get(KEY_VARIABLE) or None
    if key is None and not ipaddress.ip_address(found).is_loopback:
        raise UsageError(
            f"Others can reach {host}, and no key is set.",
            f"export {KEY_VARIABLE}=$(openssl rand -hex 24)",
        )
    return Address(host=found, port=port or free_port(), api_key=key)


def _run(group: Group, patience: timedelta, *, has_page: bool) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    page: Page | None = None
    try:
        group.open()
        if has_page:
            page = open_page(group.address.url, group.folder)
        _tell(group.address, group.models, page)
        while True:
            group.tick()
            if page is not None and not page.is_alive:
                say(f"The chat page ended: {last_line(page.log)}; models are served all the same.")
                page = None
            time.sleep(_TICK_S)
    except KeyboardInterrupt:
        _drain(group, patience)
    finally:
        if page is not None:
            page.close()
        group.close()
    # Only now: what went wrong is in the logs.
    shutil.rmtree(group.folder, ignore_errors=True)


def _drain(group: Group, patience: timedelta) -> None:
    say(f"Finishing what runs, for up to {patience.total_seconds():.0f} s; Ctrl-C again cuts it.")
    try:
        is_finished = group.drain(patience)
    except KeyboardInterrupt:
        is_finished = False
    say("Stopped." if is_finished else "Stopped; requests were cut.")


def _tell(address: Address, models: Sequence[ServedModel], page: Page | None) -> None:
    url, name = f"{address.url}/v1", models[0].name
    key = "" if address.api_key is None else f' -H "Authorization: Bearer ${KEY_VARIABLE}"'
    shown = '"none"' if address.api_key is None else f'os.environ["{KEY_VARIABLE}"]'
    print(f"{url}  {' '.join(model.name for model in models)}")
    print(
        f"curl {url}/chat/completions{key} -H 'Content-Type: application/json' -d "
        f'\'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
    print(f'python: openai.OpenAI(base_url="{url}", api_key={shown})', flush=True)
    say(f"Chat here: orchestrate chat {url}")
    if page is not None:
        say(f"Chat in a browser: {page.url}")
    say("Ready; Ctrl-C ends it.")
