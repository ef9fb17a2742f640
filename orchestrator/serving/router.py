"""The one address before all workers: smg, which routes by model, retries, queues and refuses."""

from __future__ import annotations

import secrets
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx

from orchestrator.errors import MissingDependency, UsageError
from orchestrator.serving.processes import (
    free_port,
    is_free,
    last_line,
    start_process,
    stop_process,
)

KEY_VARIABLE = "ORCHESTRATE_SERVE_API_KEY"
CONTROL_VARIABLE = "ORCHESTRATE_SERVE_CONTROL_KEY"
_START_S, _ASK_S, _LOOK_S = 30.0, 10.0, 0.1
# It goes on listening for 5 s after the signal, for balancers before it to see that it drains.
SETTLE = timedelta(seconds=5)
# Text alone: 4 MiB are a million tokens.
_MAX_BODY = 4 * 2**20
# A request whose worker died is tried elsewhere at once; where no other serves its model, for 23 s,
# in which a small model is loaded again. No longer: it may be what kills them.
_RETRIES, _FIRST_RETRY_MS, _LAST_RETRY_MS = 20, 50, 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the router lets through: at once, and waiting for their turn for so long."""

    max_concurrent: int
    max_queued: int
    max_wait: timedelta = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where clients find the router, and the key they show, if any."""

    host: str
    port: int
    api_key: str | None = None

    @property
    def url(self) -> str:
        """The base URL from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class Router:
    """A running router."""

    def __init__(self, address: Address, limits: Limits, folder: Path) -> None:
        """Start it; return when it listens.

        Raises:
            UsageError: the address is taken, or not of this machine.
        """
        check_installed()
        if not is_free(address.host, address.port):
            raise UsageError(
                f"Cannot listen at {address.host}:{address.port}.", "Choose another --port."
            )
        self._address, self._limits, self._folder = address, limits, folder
        # Its own: who may ask a model may not say who answers.
        self._control_key = secrets.token_urlsafe(32)
        self._http = httpx.Client(
            base_url=address.url,
            timeout=_ASK_S,
            # A proxy knows nothing of this machine's loopback, and would be shown the key.
            trust_env=False,
            headers={"Authorization": f"Bearer {self._control_key}"},
        )
        self.log = folder / "router.log"
        self.restart()

    def restart(self) -> None:
        """Start its process, which knows no worker yet."""
        self.process = start_process(
            _command(self._address, self._limits),
            folder=self._folder,
            log=self.log,
            environment={
                KEY_VARIABLE: self._address.api_key or "",
                CONTROL_VARIABLE: self._control_key,
                # It asks workers of this machine alone, and would have a proxy do that.
                **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
            },
        )
        self._await()

    def _await(self) -> None:
        until = time.monotonic() + _START_S
        while time.monotonic() < until and self.is_alive:
            try:
                if self._http.get("/health").status_code == httpx.codes.OK:
                    return
            except httpx.HTTPError:
                time.sleep(_LOOK_S)
        raise UsageError(
            f"The router does not start: {last_line(self.log)}", f"Its log: {self.log}"
        )

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.process.poll() is None

    def add(self, worker_url: str, model: str) -> str:
        """Send requests for the model to this worker from now on; return the worker's number."""
        worker = {"url": worker_url, "model_id": model}
        answer = self._http.post("/workers", json=worker).raise_for_status()
        number: str = answer.json()["worker_id"]
        until = time.monotonic() + _START_S
        while number not in self.ready_workers():
            if time.monotonic() > until:
                raise httpx.ReadTimeout(f"{worker_url} was not taken up", request=answer.request)
            time.sleep(_LOOK_S)
        return number

    def ready_workers(self) -> dict[str, int]:
        """Return the workers that it sends requests to, and how many each is answering."""
        workers = self._http.get("/workers").raise_for_status().json()["workers"]
        return {one["id"]: one["load"] for one in workers if one["status"] == "ready"}

    def remove(self, number: str) -> None:
        """Send nothing more to this worker."""
        self._http.delete(f"/workers/{number}")

    def drain(self, patience: timedelta) -> bool:
        """Stop taking requests, finish the running ones; tell whether all were in time."""
        return stop_process(self.process, SETTLE + patience)

    def kill(self) -> None:
        """End it; what is being answered is cut."""
        stop_process(self.process, timedelta(0))
        self._http.close()


def check_installed() -> None:
    """Say what is missing before minutes of loading.

    Raises:
        MissingDependency: the extra is not installed.
    """
    import importlib.util

    for name in ("smg", "fastapi", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise MissingDependency(
                f"Serving needs {name}, which is not installed.",
                "pip install 'spot-orchestrator[serve]'",
            )


def _command(address: Address, limits: Limits) -> list[str]:
    return [
        *(sys.executable, "-m", "orchestrator.serving.router_process"),
        *("--host", address.host, "--port", str(address.port)),
        # Without a port of ours it takes 29000 at every address.
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
        *("--enable-igw", "--disable-tokenizer-autoload", "--log-level", "warn"),
        # The default sends what begins alike to one worker, the others idle: 8 of 8 requests.
        *("--policy", "least_load"),
        *("--max-concurrent-requests", str(limits.max_concurrent)),
        *("--queue-size", str(limits.max_queued)),
        *("--queue-timeout-secs", str(int(limits.max_wait.total_seconds()))),
        *("--max-payload-size", str(_MAX_BODY)),
        *("--retry-max-retries", str(_RETRIES)),
        *("--retry-initial-backoff-ms", str(_FIRST_RETRY_MS)),
        *("--retry-max-backoff-ms", str(_LAST_RETRY_MS)),
        # Whoever started the workers sees them end; its own verdict would refuse what can wait.
        "--disable-health-check",
        # In one process tree with its workers: drained by us, so it has no limit of its own.
        *("--shutdown-grace-period-secs", "86400"),
    ]
