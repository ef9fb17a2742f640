"""Serve on a node that a cloud may take, and leave it so that nobody loses an answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from orchestrator.clock import Clock
from orchestrator.ledger.facts import ReplicaEndReason
from orchestrator.ledger.replicas import STAYS_AFTER_NOTICE
from orchestrator.serving.front import Front
from orchestrator.serving.group import Group
from orchestrator.serving.replica_facts import ReplicaFacts
from orchestrator.serving.router import SETTLE

_log = logging.getLogger(__name__)
_LOOK_S = 1.0
# Of what a notice leaves: so long requests are taken, while readiness has ended already. SkyServe
# was seen to need most of a minute to send them elsewhere; AWS leaves two, others 30 s.
_STILL_TAKEN = 0.5
# What is being answered has so long to end, and all but this of what the notice leaves.
_LONGEST_ANSWER = timedelta(minutes=10)
_BEFORE_IT_IS_TAKEN = timedelta(seconds=2)


def serve_until_told(
    group: Group,
    port: int,
    leaves_at: Callable[[], datetime | None],
    facts: ReplicaFacts,
    stop: threading.Event,
    clock: Clock,
) -> ReplicaEndReason:
    """Serve an open group at `port` until `stop` is set, or the cloud says when it takes the node.

    Returns when nothing is served any more; raises OSError if the port is taken.
    """
    is_leaving = threading.Event()
    front = Front(port, group.address.port, lambda: group.is_ready and not is_leaving.is_set())

    def watch() -> None:
        while not stop.wait(_LOOK_S) and not is_leaving.is_set():
            if (told := leaves_at()) is not None:
                is_leaving.set()
                facts.noticed(told)

    # Not where workers are looked after: a router that starts again may take what a notice leaves.
    watching = threading.Thread(target=watch, name="told-while-serving", daemon=True)
    watching.start()
    try:
        while not stop.wait(_LOOK_S) and not is_leaving.is_set():
            group.tick()
        deadline_at = leaves_at() if is_leaving.is_set() else None
        is_leaving.set()
        if deadline_at is None:
            _drain(group, front, _LONGEST_ANSWER)
            return ReplicaEndReason.STOPPED
        left = max(timedelta(), deadline_at - clock.now() - _BEFORE_IT_IS_TAKEN)
        _log.warning("the cloud takes this node in %s", left)
        still_taken_until = clock.now() + _STILL_TAKEN * left
        while clock.now() < still_taken_until and not stop.wait(_LOOK_S):
            group.tick()
        _drain(group, front, (1 - _STILL_TAKEN) * left)
        # SkyServe counts a replica that ends by itself as failed, and one that is taken as
        # preempted; a cloud may charge nothing for the latter.
        while clock.now() < deadline_at + STAYS_AFTER_NOTICE and not stop.wait(_LOOK_S):
            pass
        return ReplicaEndReason.STOPPED
    finally:
        front.close()
        is_leaving.set()
        watching.join()


def _drain(group: Group, front: Front, patience: timedelta) -> None:
    """Finish what runs and take nothing more: SkyServe's load balancer then tries elsewhere."""
    front.refuse()
    is_finished = group.drain(max(timedelta(), min(patience, _LONGEST_ANSWER) - SETTLE))
    _log.warning("drained: %s", "every answer was finished" if is_finished else "answers were cut")
