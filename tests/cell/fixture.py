"""The cell for pytest: one for the whole session, started by the first test that asks for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cell.cell import Cell


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
    """Yield the cell with an unlimited market; what a test did to it is undone afterwards."""
    cell.set_market()
    yield cell
    cell.set_market()
    for one in cell.instances():
        if one.is_alive:
            cell.preempt(one.id, 0)
