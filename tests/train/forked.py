"""Trainer processes that begin where their imports have ended: those take 3 of an attempt's 4 s.

Each is forked from one server that has imported what `python -m train` imports, and is a process
of its own in every other way: it is killed, waited for, and exits as that would.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

_PRELOADED = ["train.__main__", "train.loop"]
_context = multiprocessing.get_context("forkserver")


class ForkedTrainer:
    """What tests use of subprocess.Popen."""

    def __init__(self, config: Path, environment: Mapping[str, str], log: Path) -> None:
        _context.set_forkserver_preload(_PRELOADED)
        self._process = _context.Process(target=_train, args=(config, dict(environment), log))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"it still runs after {timeout} s"
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)


def _train(config: Path, environment: Mapping[str, str], log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["train", str(config)]
    from train.__main__ import main

    status = main()
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(status)
