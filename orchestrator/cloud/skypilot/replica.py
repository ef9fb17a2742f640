"""One replica of a service, as sky/serve.yaml runs it.

Fetches the models, has them served on the service's port, writes its cost into the ledgers of the
runs that they are of, and leaves without cutting an answer when the cloud says that it takes the
node.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType

from checkpoints.store import ObjectStore, open_store
from orchestrator.agent.metadata import open_notices
from orchestrator.agent.notice import NoticeWatch
from orchestrator.clock import Clock, SystemClock
from orchestrator.cloud.skypilot.environment import API_KEY, SERVICE, SERVICE_FOLDER
from orchestrator.cloud.skypilot.this_node import offer_of_this_node, started_for_this
from orchestrator.ledger.facts import ReplicaEndReason
from orchestrator.serving.engines import choose_engine, num_gpus
from orchestrator.serving.front import Front
from orchestrator.serving.group import Group, starter
from orchestrator.serving.models import ServedModel
from orchestrator.serving.processes import free_port
from orchestrator.serving.replica_facts import ReplicaFacts
from orchestrator.serving.router import SETTLE, Address, Limits
from orchestrator.serving.service import PORT, ServiceRecord, read_service
from orchestrator.serving.staging import fetch_model

_log = logging.getLogger(__name__)
_NUMBER = "SKYPILOT_SERVE_REPLICA_ID"
_LOOK_S = 1.0
_NOTICE_POLL_S = 2.0
# Of what a notice leaves: so long requests are taken, while readiness has ended already. SkyServe
# was seen to need 35 to 55 s to send them elsewhere; AWS leaves two minutes, others 30 s.
_STILL_TAKEN = 0.5
# What is being answered has so long to end, and all but this of what the notice leaves.
_LONGEST_ANSWER = timedelta(minutes=10)
_BEFORE_IT_IS_TAKEN = timedelta(seconds=2)
# Clouds are seldom punctual; a node that is still there then was not taken after all.
_LATEST = timedelta(minutes=1)


def main() -> int:
    """Serve until the node is to go; return an exit status that has SkyServe replace it at once."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # or each poll for a notice is a line
    variables, clock = os.environ, SystemClock()
    service = read_service(open_store(variables[SERVICE_FOLDER]), variables[SERVICE])
    offer = offer_of_this_node(service.offers, variables)
    facts = ReplicaFacts(_ledgers(service), _new_name(service, variables), clock)
    up_at = started_for_this(clock.now())
    facts.started(service.service, offer, len(service.models), up_at)
    reason = ReplicaEndReason.FAILED
    try:
        reason = _serve(service, offer.cloud, variables.get(API_KEY) or None, facts, clock)
    finally:
        facts.ended(reason)
    return 1


def _ledgers(service: ServiceRecord) -> list[ObjectStore]:
    """Return the run folders to which the replica's cost belongs, each once."""
    urls = dict.fromkeys(model.folder for model in service.models if model.is_run)
    return [open_store(url) for url in urls]


def _new_name(service: ServiceRecord, variables: Mapping[str, str]) -> str:
    return f"{service.service_id}-{variables.get(_NUMBER, 'x')}-{secrets.token_hex(3)}"


def _serve(
    service: ServiceRecord, cloud: str, api_key: str | None, facts: ReplicaFacts, clock: Clock
) -> ReplicaEndReason:
    """Have the models answer until the node is asked to stop, or is to be taken and was not."""
    scratch = _empty_scratch()
    notices = NoticeWatch(open_notices(cloud), scratch / "notice.json", _NOTICE_POLL_S)
    stop = _stop_on_signal()
    models = [
        ServedModel(name=model.name, folder=fetch_model(model, scratch / "models"))
        for model in service.models
    ]
    is_leaving = threading.Event()
    with ExitStack() as closing:
        group = _open(service, models, api_key, scratch)
        closing.callback(group.close)
        front = Front(PORT, group.address.port, lambda: group.is_ready and not is_leaving.is_set())
        closing.callback(front.close)
        _log.info("serving %s at port %d", ", ".join(model.name for model in models), PORT)
        while not stop.wait(_LOOK_S):
            group.tick()
            if notices.from_cloud is not None:
                deadline_at = notices.from_cloud.deadline_at
                facts.noticed(deadline_at)
                is_leaving.set()
                left = max(timedelta(), deadline_at - clock.now() - _BEFORE_IT_IS_TAKEN)
                _go_on(group, clock.now() + _STILL_TAKEN * left, stop, clock)
                _drain(group, front, (1 - _STILL_TAKEN) * left)
                _stay(deadline_at + _LATEST, stop, clock)
                return ReplicaEndReason.STOPPED
        is_leaving.set()
        _drain(group, front, _LONGEST_ANSWER)
    return ReplicaEndReason.STOPPED


def _open(
    service: ServiceRecord, models: Sequence[ServedModel], api_key: str | None, folder: Path
) -> Group:
    """Return the models behind their router on this machine, each of them having answered."""
    gpus = num_gpus()
    group = Group(
        models=models,
        replicas=max(1, gpus // len(models)),
        start=starter(choose_engine(None, num_gpus=gpus)),
        address=Address(host="127.0.0.1", port=free_port(), api_key=api_key),
        limits=Limits(max_concurrent=service.max_concurrent, max_queued=service.max_queued),
        folder=folder,
        say=_log.warning,
    )
    group.open()
    return group


def _go_on(group: Group, until: datetime, stop: threading.Event, clock: Clock) -> None:
    """Serve what still comes."""
    while clock.now() < until and not stop.wait(_LOOK_S):
        group.tick()


def _drain(group: Group, front: Front, patience: timedelta) -> None:
    """Finish what runs and take nothing more: SkyServe's load balancer then tries elsewhere."""
    front.refuse()
    is_finished = group.drain(max(timedelta(), min(patience, _LONGEST_ANSWER) - SETTLE))
    _log.warning("drained: %s", "every answer was finished" if is_finished else "answers were cut")


def _stay(until: datetime, stop: threading.Event, clock: Clock) -> None:
    """Wait to be taken, and not leave before.

    SkyServe counts a replica that ends by itself as failed, and one that is taken as preempted; a
    cloud may charge nothing for the latter.
    """
    while clock.now() < until and not stop.wait(_LOOK_S):
        pass


def _empty_scratch() -> Path:
    """Return a folder of this service; what an earlier start left on the disk is deleted."""
    scratch = Path.home() / "orchestrate-serving"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    return scratch


def _stop_on_signal() -> threading.Event:
    """Return what is set when the machine shuts down, or SkyPilot cancels the job."""
    stop = threading.Event()

    def heed(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, heed)
    return stop


if __name__ == "__main__":
    sys.exit(main())
