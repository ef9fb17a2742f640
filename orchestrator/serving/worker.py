"""One model in one process behind the OpenAI API: how it is started, and when it can answer."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path

import httpx

if sys.version_info >= (3, 11):
    from typing import assert_never
else:
    from typing_extensions import assert_never

from orchestrator.errors import MissingDependency, ModelNotServed
from orchestrator.serving.models import ServedModel
from orchestrator.serving.processes import free_port, last_lines, start_process, stop_process

# Loading 7B parameters from a network disk, compiling included, takes minutes.
START_LIMIT = timedelta(minutes=20)
_STOP_PATIENCE = timedelta(seconds=5)
_LOOK_S = 0.2
_PROBE_S = 2.0
# The first answer waits for the cache to be laid out.
_FIRST_ANSWER_S = 120.0
# Without a bound the server takes most of the machine's memory for its cache (9.4 GB for a model of
# 0.5 GB). In blocks of 256 tokens: 16,384 tokens for all requests together.
_CPU_BLOCKS, _CPU_BATCH_TOKENS = 64, 1024
GPU_SHARE = 0.85
_NUMBERS = itertools.count(1)


class Engine(str, Enum):
    """What runs a model."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"


class Health(str, Enum):
    """What a worker says of itself."""

    WELL = "well"
    SILENT = "silent"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a worker may use: one GPU, shared by so many workers, or the processors."""

    gpu: int | None = None
    num_sharing: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A process that serves a model; it may not be able to answer yet, or any more."""

    model: ServedModel
    process: subprocess.Popen[bytes]
    url: str
    log: Path


def choose_engine(wanted: Engine | None, *, num_gpus: int) -> Engine:
    """Return the engine: vLLM where it is installed and has a GPU, unless one is wanted.

    Raises:
        MissingDependency: vLLM is wanted and not installed.
    """
    has_vllm = shutil.which("vllm") is not None
    if wanted is Engine.VLLM and not has_vllm:
        raise MissingDependency(
            "vLLM is not installed here.", "pip install vllm; or --engine transformers"
        )
    if wanted is not None:
        return wanted
    return Engine.VLLM if has_vllm and num_gpus else Engine.TRANSFORMERS


def num_gpus() -> int:
    """Return how many NVIDIA GPUs this machine shows."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


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
    match engine:
        case Engine.TRANSFORMERS:
            command = _transformers(model.name, port, place)
        case Engine.VLLM:
            command = _vllm(model, port, place)
        case _:
            assert_never(engine)
    environment = {
        # Nothing is fetched: a model is complete, or it is refused.
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(scratch / "hub"),
        "PYTHONSAFEPATH": "1",
        **({} if place.gpu is None else {"CUDA_VISIBLE_DEVICES": str(place.gpu)}),
    }
    process = start_process(command, folder=scratch, log=log, environment=environment)
    return Worker(model=model, process=process, url=f"http://127.0.0.1:{port}", log=log)


def _transformers(name: str, port: int, place: Place) -> list[str]:
    if place.gpu is None:
        memory = [
            *("--cb-num-blocks", str(_CPU_BLOCKS)),
            *("--cb-max-batch-tokens", str(_CPU_BATCH_TOKENS)),
        ]
    else:
        memory = ["--cb-max-memory-percent", f"{GPU_SHARE / place.num_sharing:.2f}"]
    return [
        *(sys.executable, "-m", "orchestrator.serving.transformers_server", "serve", name),
        *("--device", "cpu" if place.gpu is None else "cuda:0", "--continuous-batching", *memory),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


def _vllm(model: ServedModel, port: int, place: Place) -> list[str]:
    return [
        *("vllm", "serve", str(model.folder), "--served-model-name", model.name),
        *("--middleware", "orchestrator.serving.held_head.HeldHead"),
        *("--gpu-memory-utilization", f"{GPU_SHARE / place.num_sharing:.2f}"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


def health(worker: Worker) -> Health:
    """Ask a worker how it is; a worker that cannot answer in 2 s is silent."""
    try:
        answer = httpx.get(f"{worker.url}/health", timeout=_PROBE_S)
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
        answer = httpx.post(f"{worker.url}/v1/completions", json=request, timeout=_FIRST_ANSWER_S)
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
            f"{last_lines(worker.log)}",
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
