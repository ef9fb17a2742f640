"""`orchestrate dashboard`: the pages of runs, served to a browser or written to a file."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import click

from orchestrator.cli.common import examples, say, store_option, write_page
from orchestrator.cli.completion import complete_run
from orchestrator.cli.listening import look_up
from orchestrator.cli.reports import look
from orchestrator.clock import SystemClock
from orchestrator.errors import MissingDependency, UnknownRun, UsageError
from orchestrator.runs import KnownRun, find_run

_PORT = 8645
_TOKEN = "ORCHESTRATE_DASHBOARD_TOKEN"
_HOST_NAME = r"[A-Za-z0-9.-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*"


@click.command(
    epilog=examples(
        "orchestrate dashboard",
        "orchestrate dashboard --store s3://bucket/runs",
        "orchestrate dashboard vicuna-7b --export vicuna-7b.html",
    )
)
@click.argument("run", required=False, shell_complete=complete_run)
@click.option(
    "--export",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write one self-contained HTML page instead.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=_PORT, show_default=True, help="0: a free one."
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST",
    help="Name by which browsers reach it, beside this machine's own; may be repeated.",
)
@store_option
def dashboard(
    run: str | None,
    path: Path | None,
    host: str,
    port: int,
    names: tuple[str, ...],
    store: str | None,
) -> None:
    """Serve pages of all runs, or of RUN: cost, attempts, loss, decisions. Read-only.

    What browsers have to show comes from ORCHESTRATE_DASHBOARD_TOKEN; it is made up where others
    can reach the address.

    With --export, write the page of RUN, or of the run launched last, to a file.
    """
    for name in names:
        if re.fullmatch(_HOST_NAME, name) is None:
            raise UsageError(f"--name {name!r} is no host's name.", "Give it without a port.")
    known = None if run is None else find_run(run, store)
    if path is None:
        _serve(known, store, (host, port), names)
    else:
        _export(known, store, path)


def _export(known: KnownRun | None, store: str | None, path: Path) -> None:
    # jinja2 is an extra, and costs 70 ms.
    from orchestrator.dashboard.board import Board
    from orchestrator.dashboard.page import render_page

    if known is not None:
        view = look(known)
    else:
        views = [one.view for one in Board(store, SystemClock()).every() if one.view is not None]
        if not views:
            raise UnknownRun("There is no run yet.", "Start one: orchestrate launch SPEC")
        view = views[0]
    write_page(path, render_page(view))
    say(f"Wrote the page of {view.record.run} to {path} ({path.stat().st_size // 1024} kB).")


def _serve(
    known: KnownRun | None,
    store: str | None,
    address: tuple[str, int],
    names: tuple[str, ...],
) -> None:
    try:
        # An extra, and 200 ms.
        import uvicorn

        from orchestrator.dashboard.board import Board
        from orchestrator.dashboard.server import LOOPBACK, make_app
    except ImportError as error:
        raise MissingDependency(
            f"The dashboard needs {error.name}, which is not installed.",
            "pip install 'spot-orchestrator[dashboard]'; or write a page: --export FILE",
        ) from error
    listening = _listen(*address)
    host, port = listening.getsockname()[:2]
    token = os.environ.get(_TOKEN) or None  # an empty one would let everybody in
    if token is None and not _is_loopback(host):
        token = secrets.token_urlsafe(24)
    here = [socket.gethostname(), socket.getfqdn()] if _is_any(host) else [address[0], host]
    clock = SystemClock()
    app = make_app(Board(store, clock), clock, hosts=[*LOOPBACK, *names, *here], token=token)
    shown = (names or here)[0]
    page = "/" if known is None else f"/runs/{known.key}"
    query = "" if token is None else f"?token={quote(token, safe='')}"
    name = f"[{shown}]" if ":" in shown else shown
    say(f"Dashboard at http://{name}:{port}{page}{query} (read-only; Ctrl-C ends it)")
    if not _is_loopback(host):
        say("Others can reach it, and what they read is not encrypted: better tunnel to loopback.")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Listen before the address is told: whoever opens it at once waits, and is served."""
    family, _ = look_up(host, port)
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"Cannot listen at {host}:{port}: {error.strerror}.",
            "Choose another --port; 0 is a free one.",
        ) from error


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _is_any(host: str) -> bool:
    return ipaddress.ip_address(host).is_unspecified
