"""What a run lost to its faults, from its ledger, its bill and the processes that are left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from checkpoints.fence import read_head
from checkpoints.inspect import read_manifest, verify
from checkpoints.store import ObjectStore, open_store
from orchestrator.cloud.local.supervisor import LEASE_S, SUPERVISOR_DIED
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
    folder = f"{store_url}/{run}"
    state = _state(folder)
    return Losses(
        committed_steps_lost=_steps_lost(state) + _not_in_head(open_store(folder), state),
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


def _not_in_head(store: ObjectStore, state: RunState) -> int:
    """Return how many of the steps that the ledger calls committed HEAD does not lead to."""
    found = read_head(store)
    if found is None or found[0].manifest is None:
        return state.last_commit_step
    manifest = read_manifest(store, found[0].manifest)
    if verify(store, manifest):
        return state.last_commit_step
    return max(0, state.last_commit_step - manifest.step)


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
    deleted. Where its supervisor died, what the node wrote last tells of its end, and the bill may
    be off by the lease for which nodes go on without one.
    """
    usd, num_compared = Decimal(0), 0
    came_up = [launch for launch in state.launches if launch.ready_at is not None]
    for launch in came_up:
        folder = next(place.home.glob(f"runs/*/nodes/{launch.launch}"), None)
        if folder is None:
            continue  # another machine's, or another folder's state
        num_compared += 1
        assert launch.ended_at is not None
        is_unseen = launch.detail == SUPERVISOR_DIED
        changed = [path.stat().st_mtime for path in (folder.rglob("*") if is_unseen else [folder])]
        lived_s = max(changed) - (folder / "agent.json").stat().st_mtime
        billed_s = (launch.ended_at - launch.ready_at).total_seconds()
        seen_s = _SEEN_WITHIN_S + (LEASE_S if is_unseen else 0.0)
        off_s = max(0.0, abs(billed_s - lived_s) - seen_s) * state.record.spec.time_scale
        usd += launch.offer.usd_per_hour * Decimal(off_s) / 3600
    assert num_compared or not came_up, "no node's disk was found"
    return usd
