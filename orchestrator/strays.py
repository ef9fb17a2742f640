"""What still costs money for a run that has ended, found by its name: those start with a run's id.

Only what is known to be ours and over is named; of what nobody here knows, nothing is said to be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from checkpoints.errors import CheckpointError
from orchestrator.errors import OrchestratorError
from orchestrator.launch import current_state
from orchestrator.ledger.record import read_record
from orchestrator.runs import KnownRun, list_runs
from orchestrator.spec import RUN_NAME

# As launches name them: NAME-<8 hex>, and what SkyPilot or a launch adds.
_RUN_ID = re.compile(rf"(?P<run>{RUN_NAME})-(?P<tag>[0-9a-f]{{8}})(?:-.*)?")


class RunEnd(str, Enum):
    """How a run that something is named after stands."""

    GOING_ON = "going on"
    ENDED = "ended"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """What still runs, why it should not, and the command that ends it."""

    what: str
    command: str


def find_strays(
    jobs: Iterable[tuple[int, str]], clusters: Iterable[str], end_of: Callable[[str, str], RunEnd]
) -> Iterator[Stray]:
    """Yield those managed jobs (number and name) and clusters whose run is over.

    `end_of` is asked with a run's name and its id.
    """
    named = [
        (name, f"managed job {number}", f"sky jobs cancel -y {number}") for number, name in jobs
    ]
    named += [(name, "cluster", f"sky down -y {name}") for name in clusters]
    for name, what, command in named:
        match = _RUN_ID.fullmatch(name)
        if match is None:
            continue
        end = end_of(match["run"], f"{match['run']}-{match['tag']}")
        if end is RunEnd.ENDED or end is RunEnd.GONE:
            yield Stray(what=f"{what} {name} runs, and its run is {end.value}", command=command)


def end_of_run(name: str, run_id: str, stores: Iterable[str] = ()) -> RunEnd:
    """Look in the run folders that this machine knows of, and in `stores`."""
    known = [run for run in list_runs(None) if run.run == name]
    known += [KnownRun(run=name, store_url=url) for url in stores]
    ends = {_end_in(run, run_id) for run in known}
    for end in (RunEnd.GOING_ON, RunEnd.ENDED, RunEnd.UNKNOWN, RunEnd.GONE):
        if end in ends:
            return end
    return RunEnd.UNKNOWN


def _end_in(run: KnownRun, run_id: str) -> RunEnd:
    try:
        folder = run.open()
        record = read_record(folder)
        if record is None or record.run_id != run_id:
            return RunEnd.GONE
        return RunEnd.ENDED if current_state(folder, record).ended else RunEnd.GOING_ON
    except (CheckpointError, OrchestratorError):
        return RunEnd.UNKNOWN
