"""The cloud of a cell: `python -m tests.cell.daemon BASE`, inside the cell's namespaces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Event as Flag
from threading import Lock

from tests.cell.bucket import start_bucket
from tests.cell.fake_aws import FakeAws
from tests.cell.fleet import EventLog, Fleet
from tests.cell.market import Market
from tests.cell.metadata import MetadataServer
from tests.cell.node import start_node
from tests.cell.places import AWS_API, GATEWAY, METADATA, Places
from tests.cell.records import (
    Launch,
    Nothing,
    Pids,
    Preempt,
    ServerStart,
    Terminate,
    Warn,
)
from tests.cell.server import ApiServer, controllers, kill
from tests.cell.wire import ControlServer, Routes


def main(base: Path) -> None:
    """Serve until the cell is ended."""
    places = Places(base)
    _set_up_network()
    log = EventLog(places.events)
    fleet = Fleet(lambda *about: start_node(places, *about), log, Counter(places.counter).next)
    MetadataServer(METADATA, fleet.at)
    FakeAws(AWS_API, log, fleet)
    start_bucket(places)
    log.write("cell_started")
    # Last: whoever finds it finds the rest as well.
    ControlServer(places.socket, _routes(fleet, ApiServer(places), log))
    Flag().wait()


class Counter:
    """Numbers that are never given twice, whatever dies in between."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def next(self) -> int:
        """Return the next number; the first is 1."""
        before = int(self._path.read_text()) if self._path.exists() else 0
        self._path.write_text(str(before + 1))
        return before + 1


def _set_up_network() -> None:
    ip = [["link", "set", "lo", "up"]]
    ip += [["address", "add", f"{one}/32", "dev", "lo"] for one in (GATEWAY, METADATA[0])]
    for words in ip:
        subprocess.run(["ip", *words], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _routes(fleet: Fleet, server: ApiServer, log: EventLog) -> Routes:
    one_at_a_time = Lock()

    def start(request: ServerStart) -> Nothing:
        with one_at_a_time:
            if request.restart:
                log.write("server_killed", detail={"pids": server.stop()})
            if not server.is_running:
                server.start()
                log.write("server_started")
        return Nothing()

    def kill_controllers(_: Nothing) -> Pids:
        pids = Pids(pids=tuple(controllers()))
        kill(set(pids.pids))
        log.write("controllers_killed", detail={"pids": pids.pids})
        return pids

    def kill_server(_: Nothing) -> Pids:
        pids = Pids(pids=server.stop())
        log.write("server_killed", detail={"pids": pids.pids})
        return pids

    return {
        "/launch": (Launch, fleet.launch),
        "/terminate": (Terminate, fleet.terminate),
        "/instances": (Nothing, fleet.instances),
        "/preempt": (Preempt, fleet.preempt),
        "/warn": (Warn, fleet.warn),
        "/market": (Market, fleet.set_market),
        "/market/read": (Nothing, lambda _: fleet.market),
        "/server": (ServerStart, start),
        "/server/kill": (Nothing, kill_server),
        "/controllers/kill": (Nothing, kill_controllers),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
