"""One run of a variant: a bucket of its own, fresh ranks that save, a fresh process that loads.

What is measured from outside the ranks is measured here.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from benchmarks.checkpointing.jobs import WORLD_SIZE, Act, Figures, Job, Said
from benchmarks.checkpointing.process_tree import PeakMemory, cpu_seconds
from benchmarks.checkpointing.server import Server

# Ranks that take longer hang; they are ended, and the run has failed like any other.
_LONGEST_S = 1800.0
_LOG_LINES = 30
_NUM_MEETINGS = {Act.PROBE: 1, Act.STEPS: 4}


class RunFailed(Exception):
    """A rank failed, or ended without a word; `log` is the end of what it wrote."""

    def __init__(self, what: str, log: str) -> None:
        super().__init__(what)
        self.log = log


def measure_save(server: Server, job: Job) -> Figures:
    """Return the figures of the saves and of a load of the last one; raise RunFailed."""
    with Ranks(server, job, WORLD_SIZE) as ranks:
        figures = ranks.meet()
        with PeakMemory(ranks.pids) as memory:
            ranks.go()
            figures |= ranks.meet()
            os.sync()  # what the first save left to write would slow down the second
            cpu_s, server_cpu_s = cpu_seconds(ranks.pids), cpu_seconds([server.pid])
            ranks.go()
            figures |= ranks.meet()
            figures["cpu_s"] = cpu_seconds(ranks.pids) - cpu_s
            figures["server_cpu_s"] = cpu_seconds([server.pid]) - server_cpu_s
        figures["extra_rss_mb"] = memory.extra_bytes / 1e6
        ranks.go()
        figures |= ranks.meet()
        ranks.finish()
    with Ranks(server, job.model_copy(update={"act": Act.LOAD}), 1) as loader:
        loader.meet()
        os.sync()
        loader.go()
        figures |= loader.meet()
    return figures


def measure_inside(server: Server, job: Job) -> Figures:
    """Return the figures that the ranks measure by themselves; raise RunFailed."""
    figures: Figures = {}
    with Ranks(server, job, WORLD_SIZE) as ranks:
        for _ in range(_NUM_MEETINGS[job.act]):
            figures |= ranks.meet()
            ranks.go()
        ranks.finish()
    return figures


class Ranks:
    """Rank processes that wait for their driver between any two things that it measures."""

    def __init__(self, server: Server, job: Job, world_size: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._logs = [folder / f"rank-{rank}.log" for rank in range(world_size)]
        together = {"world_size": world_size, "meeting_file": str(folder / "meet")}
        self._processes = [
            _start(job.model_copy(update={"rank": rank, **together}), server.environment, log)
            for rank, log in enumerate(self._logs)
        ]
        self._alarm = threading.Timer(_LONGEST_S, self._kill)
        self._alarm.daemon = True

    def __enter__(self) -> Ranks:
        self._alarm.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._alarm.cancel()
        self._kill()
        for process in self._processes:
            process.communicate()
        self._folder.cleanup()

    @property
    def pids(self) -> list[int]:
        """Return the ranks' processes; they have children."""
        return [process.pid for process in self._processes]

    def meet(self) -> Figures:
        """Wait until every rank waits; return the largest of each figure.

        Raises RunFailed as soon as one rank has failed: the others may wait for it for long.
        """
        figures: Figures = {}
        with selectors.DefaultSelector() as selector:
            for rank, process in enumerate(self._processes):
                assert process.stdout is not None
                selector.register(process.stdout, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    selector.unregister(key.fileobj)
                    for name, value in self._hear(key.data).items():
                        figures[name] = max(value, figures.get(name, value))
        return figures

    def go(self) -> None:
        """Let all ranks go on."""
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # the next meeting tells why
                process.stdin.write("\n")
                process.stdin.flush()

    def finish(self) -> None:
        """Let the ranks end by themselves; raises RunFailed."""
        self.go()
        for rank, process in enumerate(self._processes):
            if process.wait() != 0:
                what = f"rank {rank} ended with {process.returncode}"
                raise RunFailed(what, self._end_of_log(rank))

    def _hear(self, rank: int) -> Figures:
        output = self._processes[rank].stdout
        assert output is not None
        try:
            said = Said.model_validate_json(output.readline())
        except ValidationError:
            what = f"rank {rank} ended without a word"
            raise RunFailed(what, self._end_of_log(rank)) from None
        if said.error is not None:
            raise RunFailed(f"rank {rank}: {said.error}", self._end_of_log(rank))
        return said.figures

    def _end_of_log(self, rank: int) -> str:
        lines = self._logs[rank].read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:])

    def _kill(self) -> None:
        """End the ranks and what they started: each leads a process group."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _start(job: Job, environment: Mapping[str, str], log: Path) -> subprocess.Popen[str]:
    with log.open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.checkpointing.ranks", job.model_dump_json()],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
