"""The cell for pytest: one for the whole session, started by the first test that asks for it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cell.cell import Cell

# A node that is being set up is waited for.
_CANCEL_S = 120.0


@pytest.fixture(scope="session")
def cell() -> Iterator[Cell]:
    """Yield a fresh cell at CELL_BASE (or a temporary folder), and end it with the session.

    With CELL_KEEP=1 one that is up is used as it is and left running: a contributor who repeats a
    test then waits for its nodes only.
    """
    keep = os.environ.get("CELL_KEEP") == "1"
    with tempfile.TemporaryDirectory(prefix="cell-", dir="/var/tmp") as scratch:
        made = Cell(Path(os.environ.get("CELL_BASE") or scratch))
        made.up(fresh=not keep)
        yield made
        if not keep:
            made.down()


@pytest.fixture
def market(cell: Cell) -> Iterator[Cell]:
    """Yield the cell with an unlimited market; what a test leaves behind ends with it."""
    cell.set_market()
    yield cell
    cell.set_market()
    if not all(job.is_over for job in cell.jobs()):
        cell.run(["sky", "jobs", "cancel", "--all", "--yes"], timeout=120)
        _wait_until_over(cell)
    for one in cell.instances():
        if one.is_alive:
            cell.preempt(one.id, 0)


def _wait_until_over(cell: Cell) -> None:
    give_up_at = time.monotonic() + _CANCEL_S
    while not all(job.is_over for job in cell.jobs()) and time.monotonic() < give_up_at:
        time.sleep(0.5)
