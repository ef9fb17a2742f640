"""The cell as tests and contributors use it, from outside."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tests.cell import catalogs, namespace
from tests.cell.home import clear, furnish, write_plugins
from tests.cell.image import ensure_image
from tests.cell.jobs import Job, read_jobs
from tests.cell.market import Market
from tests.cell.namespace import Inside
from tests.cell.places import STORE_URL, Places, cell_environment
from tests.cell.records import Event, Instance, Nothing, Pids, Preempt, ServerStart, Warn
from tests.cell.wire import ask

_INSTANCES = TypeAdapter(list[Instance])
_POLL_SECONDS = 3.0


class Cell:
    """A sealed network with real SkyPilot and its clouds; everything of it is below `base`.

    It is a handle: several may be made for one cell, by several processes.
    """

    def __init__(self, base: Path | str, *, cache: Path | None = None) -> None:
        self.places = Places(Path(base).resolve())
        self._cache = cache or default_cache()

    def up(
        self,
        *,
        plugins: Sequence[str] | None = None,
        poll_seconds: float = _POLL_SECONDS,
        fresh: bool = False,
    ) -> None:
        """Have the cell run, with SkyPilot's server in it; one that runs is left as it is.

        Args:
            plugins: classes that SkyPilot's server loads after the cell's own. A server that runs
                with others is restarted; None leaves it.
            poll_seconds: how often SkyPilot looks at a job (15 s without a cell).
            fresh: forget all runs, clusters and prices of before.

        Raises:
            CellError: this machine lacks something; the message says what to install.
        """
        with _one_at_a_time(self.places.base):
            if fresh or not self.is_up:
                # Also one whose daemon has died, or whose folder was removed.
                self.down()
            if fresh:
                shutil.rmtree(self.places.base, ignore_errors=True)
            if not self.is_up:
                namespace.check_machine()
                image = ensure_image(self._cache)
                furnish(self.places, image, plugins or (), poll_seconds)
                namespace.start(self.places)
            elif plugins is not None and write_plugins(self.places, plugins, poll_seconds):
                self._ask("/server", ServerStart(restart=True))
            self._ask("/server", ServerStart())

    def down(self) -> None:
        """End the cell with everything in it; what is below `base` stays."""
        namespace.end(self.places)
        clear(self.places)

    @property
    def is_up(self) -> bool:
        return bool(namespace.holders(self.places)) and self.places.socket.exists()

    @property
    def env(self) -> dict[str, str]:
        """The environment of commands in the cell."""
        return cell_environment(self.places)

    @property
    def store_url(self) -> str:
        """The bucket in the cell; only commands inside reach it."""
        return STORE_URL

    def run(
        self,
        command: Sequence[str | Path],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the cell and return what it said."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = self.start(command, env=env, cwd=cwd, **pipes)
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
        if check:
            done.check_returncode()
        return done

    def start(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        **options: Any,
    ) -> Inside:
        """Start a command in the cell; `options` are those of Popen."""
        options.setdefault("stdin", subprocess.DEVNULL)
        return Inside(self.places, [str(word) for word in command], env=env, cwd=cwd, **options)

    def set_market(
        self,
        *,
        capacity: Mapping[str, int] | None = None,
        boot_seconds: float = 0,
        no_capacity_seconds: float = 0,
    ) -> None:
        """Replace the market: what is not given is unlimited and takes no time. See Market."""
        market = Market(
            capacity=dict(capacity or {}),
            boot_seconds=boot_seconds,
            no_capacity_seconds=no_capacity_seconds,
        )
        self._ask("/market", market)

    def preempt(
        self,
        target: str,
        notice_seconds: float | None = None,
        *,
        capacity: Mapping[str, int] | None = None,
    ) -> list[Instance]:
        """Take back an instance or a whole cluster, after a notice of so many seconds.

        None gives the notice that the cloud gives; 0 kills at once. `capacity` is merged into the
        market's at the same moment.
        """
        request = Preempt(
            target=target, notice_seconds=notice_seconds, capacity=dict(capacity or {})
        )
        return _INSTANCES.validate_json(self._ask("/preempt", request))

    def warn(self, target: str) -> list[Instance]:
        """Announce that instances are at risk; nothing happens to them."""
        return _INSTANCES.validate_json(self._ask("/warn", Warn(target=target)))

    def instances(self, cluster: str | None = None) -> list[Instance]:
        """Return all instances since the cell is up, oldest first, or those of a cluster."""
        found = _INSTANCES.validate_json(self._ask("/instances", Nothing()))
        wanted = [
            one for one in found if cluster is None or f"{one.cluster}-".startswith(f"{cluster}-")
        ]
        return wanted

    def jobs(self) -> list[Job]:
        """Return SkyPilot's managed jobs, oldest first; it costs no process in the cell."""
        return read_jobs(self.places.home)

    def events(self) -> list[Event]:
        """Return what has happened so far, in order."""
        if not self.places.events.exists():
            return []
        lines = self.places.events.read_text(encoding="utf-8").splitlines()
        return [Event.model_validate_json(line) for line in lines]

    def set_prices(
        self,
        cloud: str,
        instance_type: str,
        *,
        zone: str | None = None,
        spot: float | None = None,
        on_demand: float | None = None,
    ) -> None:
        """Change USD per hour in SkyPilot's catalog; its running server keeps those it has read.

        Raises:
            ValueError: no such machine is in the catalog.
        """
        prices = {"zone": zone, "spot": spot, "on_demand": on_demand}
        if not catalogs.set_prices(self.places.home, cloud, instance_type, **prices):
            raise ValueError(
                f"the catalog of {cloud} has no {instance_type} in {zone or 'any zone'}"
            )

    def restart_server(
        self, *, plugins: Sequence[str] | None = None, poll_seconds: float = _POLL_SECONDS
    ) -> None:
        """Kill SkyPilot's server and controllers, and start them again; jobs are picked up.

        `plugins` replaces the list; None keeps it. Nodes do not notice.
        """
        if plugins is not None:
            write_plugins(self.places, plugins, poll_seconds)
        self._ask("/server", ServerStart(restart=True))

    def kill_server(self) -> None:
        """Kill SkyPilot's server and controllers for good: nobody owns the nodes any more."""
        self._ask("/server/kill", Nothing())

    def kill_controller(self, *, restart: bool = True) -> tuple[int, ...]:
        """Kill the managed-jobs controllers and return their numbers in the cell.

        SkyPilot 0.14 looks for dead ones each 300 s, and then declares their jobs failed; what does
        adopt them is a server that starts. `restart` starts one, as a machine that reboots would.
        """
        killed = Pids.model_validate_json(self._ask("/controllers/kill", Nothing()))
        if restart:
            self.restart_server()
        return killed.pids

    def _ask(self, path: str, request: Any) -> bytes:
        namespace.first_process(self.places)
        return ask(self.places.socket, path, request)


@contextlib.contextmanager
def _one_at_a_time(base: Path) -> Iterator[None]:
    """Keep others from starting a cell at this BASE meanwhile."""
    base.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(base.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def default_cache() -> Path:
    """Return where node images are kept: CELL_CACHE, or the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CELL_CACHE") or Path(cache) / "orchestrate-cell")
