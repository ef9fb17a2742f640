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
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
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
from orchestrator.serving.group import Group, starter
from orchestrator.serving.leaving import serve_until_told
from orchestrator.serving.loading import gone_when_told
from orchestrator.serving.models import ServedModel
from orchestrator.serving.processes import free_port
from orchestrator.serving.replica_facts import ReplicaFacts
from orchestrator.serving.router import Address, Limits
from orchestrator.serving.service import PORT, ServiceRecord, read_service
from orchestrator.serving.staging import fetch_model

_log = logging.getLogger(__name__)
_NUMBER = "SKYPILOT_SERVE_REPLICA_ID"
_NOTICE_POLL_S = 2.0


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


def _ledgers(service: ServiceRecord) -> list[tuple[ObjectStore, int]]:
    """Return the run folders to which the cost belongs, each with how many models are of it."""
    urls = Counter(model.folder for model in service.models if model.is_run)
    return [(open_store(url), number) for url, number in urls.items()]


def _new_name(service: ServiceRecord, variables: Mapping[str, str]) -> str:
    return f"{service.service_id}-{variables.get(_NUMBER, 'x')}-{secrets.token_hex(3)}"


def _serve(
    service: ServiceRecord, cloud: str, api_key: str | None, facts: ReplicaFacts, clock: Clock
) -> ReplicaEndReason:
    """Have the models answer until the node is asked to stop, or is to be taken and was not."""
    scratch = _empty_scratch()
    notices = NoticeWatch(open_notices(cloud), scratch / "notice.json", _NOTICE_POLL_S)
    stop = _stop_on_signal()

    def leaves_at() -> datetime | None:
        notice = notices.from_cloud
        return None if notice is None else notice.deadline_at

    with gone_when_told(leaves_at, facts, stop):
        models = [
            ServedModel(name=model.name, folder=fetch_model(model, scratch / "models"))
            for model in service.models
        ]
        group = _open(service, models, api_key, scratch)
    try:
        _log.info("serving %s at port %d", ", ".join(model.name for model in models), PORT)
        return serve_until_told(group, PORT, leaves_at, facts, stop, clock)
    finally:
        group.close()


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
