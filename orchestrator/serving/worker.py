"""One model in one process behind the OpenAI API: how it is started, and when it can answer."""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path

import httpx

from orchestrator.errors import ModelNotServed
from orchestrator.serving.engines import (
    Engine,
    Place,
    choose_engine,
    num_gpus,
    place_variables,
    serve_command,
)
from orchestrator.serving.models import ServedModel
from orchestrator.serving.processes import free_port, last_line, start_process, stop_process

# Loading 7B parameters from a network disk, compiling included, takes minutes.
START_LIMIT = timedelta(minutes=20)
_STOP_PATIENCE = timedelta(seconds=5)
_LOOK_S = 0.2
_PROBE_S = 2.0
# The first answer waits for the cache to be laid out.
_FIRST_ANSWER_S = 120.0
_NUMBERS = itertools.count(1)


class Health(str, Enum):
    """What a worker says of itself."""

    WELL = "well"
    SILENT = "silent"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A process that serves a model; it may not be able to answer yet, or any more."""

    model: ServedModel
    process: subprocess.Popen[bytes]
    url: str
    log: Path


def start_worker(
    model: ServedModel, folder: Path, *, engine: Engine, place: Place | None = None
) -> Worker:
    """Start a worker, its files under `folder`; it loads the model for seconds to minutes."""
    place = place or Place(gpu=0 if num_gpus() else None)
    scratch = folder / f"{model.name}-{next(_NUMBERS)}"
    (scratch / "hub").mkdir(parents=True)
    # The server answers only to the text that it was started with: a link makes that the name.
    (scratch / model.name).symlink_to(model.folder)
    port, log = free_port(), scratch / "worker.log"
    command = serve_command(engine, model, port, place)
    environment = {
        # Nothing is fetched: a model is complete, or it is refused.
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(scratch / "hub"),
        "PYTHONSAFEPATH": "1",
        **place_variables(place),
    }
    process = start_process(command, folder=scratch, log=log, environment=environment)
    return Worker(model=model, process=process, url=f"http://127.0.0.1:{port}", log=log)


def health(worker: Worker) -> Health:
    """Ask a worker how it is; a worker that cannot answer in 2 s is silent."""
    try:
        answer = httpx.get(f"{worker.url}/health", timeout=_PROBE_S, trust_env=False)
    except httpx.HTTPError:
        return Health.SILENT
    return Health.WELL if answer.status_code == httpx.codes.OK else Health.BROKEN


def check_first_answer(worker: Worker) -> None:
    """Have a worker write one token: what it lacks shows before a client asks.

    Raises:
        ModelNotServed: it cannot.
    """
    request = {"model": worker.model.name, "prompt": "1", "max_tokens": 1}
    try:
        answer = httpx.post(
            f"{worker.url}/v1/completions",
            json=request,
            timeout=_FIRST_ANSWER_S,
            trust_env=False,
        )
        said = f"{answer.status_code} {answer.text[:200]}"
    except httpx.HTTPError as error:
        answer, said = None, str(error)
    if answer is None or answer.status_code != httpx.codes.OK:
        raise ModelNotServed(
            f"{worker.model.name} loads but writes nothing: {said}.", f"Its log: {worker.log}"
        )


def check_alive(worker: Worker) -> None:
    """Say why a worker has ended, if it has.

    Raises:
        ModelNotServed: it has.
    """
    if worker.process.poll() is not None:
        raise ModelNotServed(
            f"The server of {worker.model.name} ended with {worker.process.returncode}: "
            f"{last_line(worker.log)}",
            f"Its whole log: {worker.log}",
        )


@contextmanager
def running_worker(model: ServedModel, *, folder: Path) -> Iterator[str]:
    """Yield the base URL of the OpenAI API of one worker, without a router before it.

    Raises:
        ModelNotServed: it cannot be started.
    """
    engine = choose_engine(None, num_gpus=num_gpus())
    worker = start_worker(model, folder, engine=engine)
    try:
        await_first_answer(worker)
        yield f"{worker.url}/v1"
    finally:
        stop_worker(worker)


def await_first_answer(worker: Worker) -> None:
    """Return when a worker has answered.

    Raises:
        ModelNotServed: it ended, or did not answer in time.
    """
    until = time.monotonic() + START_LIMIT.total_seconds()
    while health(worker) is not Health.WELL:
        check_alive(worker)
        if time.monotonic() > until:
            raise ModelNotServed(
                f"{worker.model.name} was not ready after {START_LIMIT}.", f"Its log: {worker.log}"
            )
        time.sleep(_LOOK_S)
    check_first_answer(worker)


def stop_worker(worker: Worker) -> None:
    """End a worker; what it was answering is cut."""
    stop_process(worker.process, _STOP_PATIENCE)
