"""A row per injected fault, for the table of docs/reliability.md.

Tests call `record_fault` with what they counted. Rows go to the file that FAULT_RECORD names, if it
does, as JSON lines; `.ci/write_reliability.py` makes the table of them.
"""

from __future__ import annotations

import json
import os
from decimal import Decimal
from pathlib import Path

FAULT_RECORD = "FAULT_RECORD"


def record_fault(
    fault: str,
    what: str,
    *,
    injected: int,
    committed_steps_lost: int | None = None,
    usd_unaccounted: Decimal | None = None,
    orphans: int | None = None,
    command: str | None = None,
) -> None:
    """Record one row; `injected` is counted where the fault fired, None is what was not at stake.

    Without a command it is the one that runs the test again.
    """
    assert injected > 0, f"{fault}: {what} was planned but never fired"
    name = os.environ.get(FAULT_RECORD)
    if name is None:
        return
    row = {
        "fault": fault,
        "what": what,
        "injected": injected,
        "committed_steps_lost": committed_steps_lost,
        "usd_unaccounted": None if usd_unaccounted is None else str(usd_unaccounted),
        "orphans": orphans,
        "command": command or _this_test(),
    }
    # One write of less than a page: workers of one run may share the file.
    with Path(name).open("a") as file:
        file.write(json.dumps(row) + "\n")


def _this_test() -> str:
    """Return the command that runs the current test, without its parameters."""
    node = os.environ["PYTEST_CURRENT_TEST"].partition(" ")[0].partition("[")[0]
    path, _, name = node.partition("::")
    return f"pytest -m '' {path} -k {name}"
