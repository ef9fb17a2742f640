"""The instances of all clouds: who gets one, and when it is taken away.

It decides and remembers; what an instance is made of is the business of whoever starts it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import RLock, Thread, Timer
from typing import Protocol

from tests.cell.market import Market
from tests.cell.records import (
    Event,
    Instance,
    Launch,
    Nothing,
    Preempt,
    Reason,
    Refusal,
    State,
    Terminate,
    Warn,
)
from tests.cell.wire import Refused

# What the clouds themselves give; Azure's and Google's are minimums.
NOTICE_SECONDS = {"aws": 120.0, "gcp": 30.0, "azure": 30.0}
# Their words for having no machine to spare: SkyPilot blocks a zone on either.
_NO_CAPACITY = {
    "aws": "InsufficientInstanceCapacity",
    "gcp": "ZONE_RESOURCE_POOL_EXHAUSTED",
    "azure": "SkuNotAvailable",
}
_HOSTS_PER_BLOCK = 250


class Machine(Protocol):
    """What an instance runs on."""

    def kill(self) -> None:
        """End it and all that runs on it at once."""

    def wait(self) -> None:
        """Return when it has ended."""


Start = Callable[[Instance, str, float], Machine]


class Fleet:
    """All instances since the cell was made; numbers and addresses are never given twice.

    SkyPilot keeps SSH connections by address, so a second machine behind one would inherit them.
    """

    def __init__(self, start: Start, log: EventLog, first_number: Callable[[], int]) -> None:
        self.market = Market()
        self._start = start
        self._log = log
        self._next_number = first_number
        self._instances: dict[str, Instance] = {}
        self._machines: dict[str, Machine] = {}
        self._lock = RLock()

    def instances(self, _: Nothing = Nothing()) -> list[Instance]:  # noqa: B008 - immutable
        """Return every instance there ever was, oldest first."""
        with self._lock:
            return list(self._instances.values())

    def at(self, ip: str) -> Instance | None:
        """Return the living instance with this address."""
        return next((one for one in self.instances() if one.ip == ip and one.is_alive), None)

    def set_market(self, market: Market) -> Nothing:
        """Replace the market."""
        with self._lock:
            self.market = market
        self._log.write("market_changed", detail=market.model_dump())
        return Nothing()

    def launch(self, request: Launch) -> list[Instance]:
        """Start what is asked for in the first zone that has room for all of it.

        Raises:
            Refused: none has, which is said as late as the market wants.
        """
        with self._lock:
            for zone in request.zones:
                living = [one for one in self._instances.values() if one.is_alive]
                where = request.cloud, request.region, zone, request.spot
                if self.market.room(living, *where) >= request.count:
                    return [self._launch_one(request, zone) for _ in range(request.count)]
            wait_s = self.market.no_capacity_seconds
        time.sleep(wait_s)
        market = "spot" if request.spot else "on-demand"
        message = f"no {market} capacity for {request.instance_type} in {', '.join(request.zones)}"
        self._log.write("no_capacity", cluster=request.cluster, detail=request.model_dump())
        raise Refused(Refusal(code=_NO_CAPACITY[request.cloud], message=message))

    def terminate(self, request: Terminate) -> Nothing:
        """End a cluster's instances."""
        for one in self._living(request.cluster):
            if one.cloud == request.cloud and not (request.worker_only and one.head):
                self._end(one.id, Reason.REQUESTED)
        return Nothing()

    def preempt(self, request: Preempt) -> list[Instance]:
        """Announce the end of instances, and bring it about when their notice has passed."""
        with self._lock:
            if request.capacity:
                merged = {**self.market.capacity, **request.capacity}
                self.set_market(self.market.model_copy(update={"capacity": merged}))
            return [
                self._announce(one, request.notice_seconds) for one in self._living(request.target)
            ]

    def warn(self, request: Warn) -> list[Instance]:
        """Say that instances are at risk."""
        with self._lock:
            warned = [self._change(one.id, warned=_now()) for one in self._living(request.target)]
        for one in warned:
            self._log.write("warned", one)
        return warned

    def _living(self, target: str) -> list[Instance]:
        """Return the living instances with this id, or of this cluster.

        SkyPilot appends its user's hash to a cluster's name before the cloud learns it.
        """
        return [
            one
            for one in self.instances()
            if one.is_alive
            and (target in (one.id, one.cluster) or one.cluster.startswith(f"{target}-"))
        ]

    def _launch_one(self, request: Launch, zone: str) -> Instance:
        number = self._next_number()
        peers = [one for one in self._instances.values() if one.cluster == request.cluster]
        instance = Instance(
            id=f"i-{number:017x}",
            zone=zone,
            ip=address_of(number),
            head=not any(one.is_alive for one in peers),
            state=State.PENDING,
            launched=_now(),
            **request.model_dump(exclude={"zones", "count", "public_key"}),
        )
        self._instances[instance.id] = instance
        boot_s = self.market.boot_seconds
        self._log.write("launched", instance, detail=instance.model_dump(mode="json"))
        self._machines[instance.id] = self._start(instance, request.public_key, boot_s)
        Thread(target=self._watch, args=(instance.id,), daemon=True).start()
        _later(boot_s, lambda: self._booted(instance.id))
        return self._instances[instance.id]

    def _booted(self, name: str) -> None:
        with self._lock:
            if self._instances[name].state is State.PENDING:
                self._change(name, state=State.RUNNING)

    def _announce(self, instance: Instance, notice_seconds: float | None) -> Instance:
        seconds = NOTICE_SECONDS[instance.cloud] if notice_seconds is None else notice_seconds
        noticed = self._change(instance.id, deadline=_now() + timedelta(seconds=seconds))
        self._log.write("noticed", noticed, detail={"seconds": seconds})
        _later(seconds, lambda: self._end(instance.id, Reason.PREEMPTED))
        return noticed

    def _watch(self, name: str) -> None:
        self._machines[name].wait()
        self._end(name, Reason.CRASHED)

    def _end(self, name: str, reason: Reason) -> None:
        with self._lock:
            if not self._instances[name].is_alive:
                return
            ended = self._change(name, state=State.TERMINATED, ended=_now(), reason=reason)
            self._machines[name].kill()
        self._log.write("ended", ended, detail={"reason": reason.value})

    def _change(self, name: str, **changes: object) -> Instance:
        self._instances[name] = self._instances[name].model_copy(update=changes)
        return self._instances[name]


class EventLog:
    """A file of JSON lines, each a fact about the cell."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = RLock()

    def write(
        self,
        kind: str,
        instance: Instance | None = None,
        *,
        cluster: str | None = None,
        detail: dict[str, object] | None = None,
    ) -> None:
        """Append one fact."""
        name, owner = (instance.id, instance.cluster) if instance else (None, cluster)
        event = Event(at=_now(), kind=kind, instance=name, cluster=owner, detail=detail or {})
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(event.model_dump_json() + "\n")


def address_of(number: int) -> str:
    """Return the address of the instance with this number, the first of which is 1."""
    block, host = divmod(number, _HOSTS_PER_BLOCK)
    return f"10.77.{1 + block}.{1 + host}"


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _later(seconds: float, act: Callable[[], None]) -> None:
    if seconds <= 0:
        act()
        return
    timer = Timer(seconds, act)
    timer.daemon = True
    timer.start()
