"""What a run lost to its faults, from its ledger, its bill and the processes that are left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from checkpoints.store import open_store
from orchestrator.cloud.local.supervisor import SUPERVISOR_DIED
from orchestrator.ledger.facts import FinalState
from orchestrator.ledger.fold import CommitView, RunState, fold
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.record import read_record
from tests.end_to_end.conftest import Workplace

# From a node's end to the fact that says so, on a busy machine.
_SEEN_WITHIN_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The three figures of docs/reliability.md."""

    committed_steps_lost: int
    usd_unaccounted: Decimal
    orphans: int

    def row(self) -> dict[str, int | Decimal]:
        """Return them by name, for `record_fault`."""
        return {
            "committed_steps_lost": self.committed_steps_lost,
            "usd_unaccounted": self.usd_unaccounted,
            "orphans": self.orphans,
        }


NOTHING = Losses(committed_steps_lost=0, usd_unaccounted=Decimal(0), orphans=0)


def losses(place: Workplace, store: str, run: str = "small") -> Losses:
    """Look at a run that is over, in a store that is named by its URL or its path."""
    store_url = store if "://" in store else Path(store).as_uri()
    left = place.leftovers(seconds=30)
    state = _state(f"{store_url}/{run}")
    return Losses(
        committed_steps_lost=_steps_lost(state),
        usd_unaccounted=_usd_unaccounted(place, run) + _usd_off(place, state),
        orphans=len(left),
    )


def commits_of(store_url: str, run: str = "small") -> tuple[CommitView, ...]:
    """Return what the ledger knows of the run's checkpoints."""
    return _state(f"{store_url}/{run}").commits


def _state(url: str) -> RunState:
    store = open_store(url)
    record = read_record(store)
    assert record is not None
    return fold(record, LedgerReader(store).read())


def _steps_lost(state: RunState) -> int:
    """Add up by how much each attempt began before what an earlier one had committed."""
    lost = 0
    for launch in state.launches:
        if launch.attempt is None or launch.resumed_step is None:
            continue
        before = [c.step for c in state.commits if c.attempt < launch.attempt and c.damage is None]
        lost += max(0, max(before, default=0) - launch.resumed_step)
    if state.ended is not None and state.ended.state is FinalState.SUCCEEDED:
        lost += max(0, state.record.num_steps - state.last_commit_step)
    return lost


def _usd_unaccounted(place: Workplace, run: str) -> Decimal:
    """Return what the bill's parts, its attempts and its seconds leave open."""
    text = place.run("cost", run, "--json").stdout
    cost = json.loads(text, parse_float=Decimal)
    assert sum(cost["seconds"].values()) == cost["wall_seconds"]
    parts = cost["parts"]
    open_parts = abs(Decimal(cost["total_usd"]) - sum(map(Decimal, parts.values())))
    open_launches = Decimal(0)
    for part, launches in (("compute", "attempts"), ("failed_launches", "vain_launches")):
        billed = sum(Decimal(one["usd"]) for one in cost[launches])
        open_launches += abs(Decimal(parts[part]) - billed)
    return open_parts + open_launches


def _usd_off(place: Workplace, state: RunState) -> Decimal:
    """Return by how much the bill differs from what the nodes' own disks say of their lives.

    A node's configuration is written as it starts; its folder changes last when its disk is
    deleted. Where its supervisor died, the disk outlives the node: its processes end it.
    """
    usd = Decimal(0)
    for launch in state.launches:
        folder = next(place.home.glob(f"runs/*/nodes/{launch.launch}"), None)
        if folder is None or launch.ready_at is None or launch.detail == SUPERVISOR_DIED:
            continue
        assert launch.ended_at is not None
        lived_s = folder.stat().st_mtime - (folder / "agent.json").stat().st_mtime
        billed_s = (launch.ended_at - launch.ready_at).total_seconds()
        off_s = max(0.0, abs(billed_s - lived_s) - _SEEN_WITHIN_S) * state.record.spec.time_scale
        usd += launch.offer.usd_per_hour * Decimal(off_s) / 3600
    return usd
