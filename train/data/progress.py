"""Say how far a run over a file is: a bar on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Yield what takes how much of `total` is done and the number of conversations so far."""
    if sys.stderr.isatty():
        yield from _bar(what, total)
    else:
        yield from _lines(what, total)


def say(message: str) -> None:
    """Print a message for people."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def _bar(what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console  # 60 ms, and only for people who wait
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        *(TextColumn(what), BarColumn(), TextColumn("{task.percentage:>3.0f}%")),
        *(TextColumn("{task.fields[num]:,} conversations"), TimeRemainingColumn()),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, num=0)
        yield lambda done, num: bar.update(task, completed=done, num=num)


def _lines(what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    start = last = time.monotonic()

    def show(done: int, num: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            percent = 100 * done // max(total, 1)
            say(f"{what}: {percent}% {num:,} conversations {now - start:.0f}s")

    yield show
