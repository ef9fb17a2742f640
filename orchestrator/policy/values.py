"""What the rest of a run is expected to cost, by work left, slack and what is up.

Backward dynamic programming (value iteration over a finite horizon) on a model of the market: each
zone has room or has none, with rates by age; the other zones together have some or none; sooner or
later all of it is as usual again. Costs are USD, for the present prices.

A table is over steps left and slack, not work: slack never grows, so that rows are short where a
deadline is tight. Shapes: Z zones, S steps of slack, K phases of age, and two states of the others.
A state of a zone is one of 2K: with room since phase k, or without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from orchestrator.policy.hazards import NUM_PHASES, PHASE_STARTS

Array = NDArray[np.float64]
_Costs = NDArray[np.float32]

_K = NUM_PHASES
# Of the tables while they are computed: a fifth less time than doubles, and the same choices.
_Small = np.float32
# Some megabytes each; a run needs two at a time.
_NUM_KEPT = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlook:
    """What is believed of Z zones; rates are per hour. Equal if every number is."""

    spot: Array  # [Z], USD per hour
    on_demand: Array  # [Z], USD per hour
    losses: Array  # [Z, K], of room
    returns: Array  # [Z, K]
    others: Array  # [Z, 2], how often the other zones lose all room, and have some again
    moves: Array  # [Z, Z], USD
    odds: Array  # [Z, Z], of going from zone to zone, where the others have room

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outlook) and self._numbers() == other._numbers()

    def __hash__(self) -> int:
        return hash(self._numbers())

    def _numbers(self) -> bytes:
        every = (self.spot, self.on_demand, self.losses, self.returns, self.others)
        return b"".join(one.tobytes() for one in (*every, self.moves, self.odds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What a table reaches over, in hours; with no more slack than `reserve` it is on demand."""

    hours: float
    slack: float
    step: float
    restart: float
    """At most a step."""
    reserve: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Expected USD by [steps left, zone, steps of slack, state]; the others vary fastest."""

    step: float
    """Hours of a step."""
    waiting: _Costs  # 4K states
    on_demand: _Costs  # 4K
    spot: _Costs  # 2K: only those with room
    outlook: Outlook
    chain: Array  # [Z, 4K, 4K], of a zone and the others, from column to row
    alive: Array  # [Z, 2K, 2K], of a node and the others
    lost: Array  # [Z, 2, 2K], to the state of the others

    def if_waiting(self, zone: int, work: float, slack: float, state: int) -> float:
        """Return the cost of doing nothing for a step."""
        after = self._at(self.waiting, zone, work, slack - self.step)
        return float(after @ self.chain[zone, :, state])

    def if_on_demand(self, zone: int, work: float, slack: float, state: int, cold: float) -> float:
        """Return the cost of a step on demand, `cold` hours of which train nothing."""
        usd = float(self.outlook.on_demand[zone]) * min(self.step, work + cold)
        after = self._at(self.on_demand, zone, work + cold - self.step, slack - cold)
        return usd + float(after @ self.chain[zone, :, state])

    def if_spot(
        self, zone: int, work: float, slack: float, state: int, cold: float, usd_per_hour: float
    ) -> float:
        """Return the cost of a step on spot; `state` is that of a zone with room."""
        usd = usd_per_hour * min(self.step, work + cold)
        work, slack = work + cold - self.step, slack - cold
        usd += float(self._at(self.spot, zone, work, slack) @ self.alive[zone, :, state])
        none = self._at(self.waiting, zone, work, slack)[2 * _K : 2 * _K + 2]
        return usd + float(none @ self.lost[zone, :, state])

    def _at(self, table: _Costs, zone: int, work: float, slack: float) -> _Costs:
        """Interpolate between the grid's points; all of it costs nothing once the work is done."""
        if work <= 0:
            return np.zeros(table.shape[3], _Small)
        column = min(max(slack, 0.0) / self.step, table.shape[2] - 1)
        row = min(work / self.step + column, table.shape[0] - 1)
        i, k = min(int(row), table.shape[0] - 2), min(int(column), table.shape[2] - 2)
        a, b = row - i, column - k
        near = table[i : i + 2, zone, k : k + 2]
        rows = (1 - b) * near[:, 0] + b * near[:, 1]
        mixed: _Costs = (1 - a) * rows[0] + a * rows[1]
        return mixed


def state_of(phase: int, *, is_up: bool, others_up: bool) -> int:
    """Return the number of a zone's state."""
    return 2 * (phase + (0 if is_up else _K)) + others_up


@lru_cache(maxsize=_NUM_KEPT)
def solve(
    outlook: Outlook, grid: Grid, usual: Table | None = None, turns_per_hour: float = 0.0
) -> Table:
    """Return the table for up to so many hours and so much slack; the last ones are kept.

    `usual` is what the market turns to, `turns_per_hour` times an hour; one of the same step and
    slack, and at least as many hours.
    """
    step, restart = grid.step, grid.restart
    num_steps, num_slack = math.ceil(grid.hours / step) + 1, math.ceil(grid.slack / step) + 1
    num_zones = len(outlook.spot)
    chain, alive, lost = _transitions(outlook, step)
    by_chain, by_alive, by_lost = (one.astype(_Small) for one in (chain, alive, lost))
    waiting = np.zeros((num_steps + 1, num_zones, num_slack + 1, 4 * _K), _Small)
    on_demand = np.zeros_like(waiting)
    spot = np.zeros((num_steps + 1, num_zones, num_slack + 1, 2 * _K), _Small)
    # Less slack than the reserve is on demand to the end, here or where it is cheapest.
    first_free = min(math.ceil(grid.reserve / step - 1e-9), num_slack + 1)
    most_work = max(grid.hours - grid.slack, step)
    cheapest = np.argmin(outlook.on_demand * most_work + outlook.moves, axis=1)
    way = outlook.moves[np.arange(num_zones), cheapest] + outlook.on_demand[cheapest] * restart

    spot_usd = (outlook.spot * step)[:, None, None].astype(_Small)
    on_demand_usd = (outlook.on_demand * step)[:, None, None].astype(_Small)
    cold = _Small(restart / step)
    move = ((outlook.odds * outlook.moves).sum(axis=1)[:, None]).astype(_Small)
    # Of the others of the zone that one goes to: nothing is known of them.
    some = (outlook.others[:, 1] / np.maximum(outlook.others.sum(axis=1), 1e-12)).astype(_Small)
    odds = outlook.odds.astype(_Small)
    turn = _Small(0.0 if usual is None else turns_per_hour * step)
    for count in range(1, num_steps + 1):
        # Columns with work left; those with as much slack as time have none.
        size = min(count, num_slack + 1)
        idle, paid, running = (table[count, :, :size] for table in (waiting, on_demand, spot))
        after_idle = waiting[count - 1, :, :size] @ by_chain
        after_paid = on_demand[count - 1, :, :size] @ by_chain
        gone = waiting[count - 1, :, :size, 2 * _K : 2 * _K + 2]
        after_spot = spot[count - 1, :, :size] @ by_alive + gone @ by_lost
        if usual is not None:
            after_idle += turn * (usual.waiting[count - 1, :, :size] - after_idle)
            after_paid += turn * (usual.on_demand[count - 1, :, :size] - after_paid)
            after_spot += turn * (usual.spot[count - 1, :, :size] - after_spot)
        work = (step * np.arange(count, count - size, -1)).astype(_Small)
        safe = (outlook.on_demand[cheapest, None] * work + way[:, None]).astype(_Small)
        free = slice(first_free, None)
        if first_free < size:
            # Waiting takes a step of slack, a start its own time; training takes none.
            less = slice(first_free - 1, -1)
            start = spot_usd + cold * after_spot[:, less, :2] + (1 - cold) * after_spot[:, free, :2]
            best = on_demand_usd + cold * after_paid[:, less] + (1 - cold) * after_paid[:, free]
            np.minimum(best, after_idle[:, less], out=best)
            states = best.reshape(num_zones, size - first_free, 2 * _K, 2)
            np.minimum(states[:, :, :_K], start[:, :, None], out=states[:, :, :_K])
            if num_zones > 1:
                there = start[:, :, 0] * (1 - some)[:, None] + start[:, :, 1] * some[:, None]
                elsewhere = odds @ there + move
                np.minimum(states[..., 1], elsewhere[:, :, None], out=states[..., 1])
            np.minimum(best, safe[:, free, None], out=idle[:, free])
        idle[:, :first_free] = safe[:, :first_free, None]
        np.minimum(on_demand_usd + after_paid, idle, out=paid)
        np.minimum(paid, outlook.on_demand.astype(_Small)[:, None, None] * work[:, None], out=paid)
        np.minimum(spot_usd + after_spot, idle[:, :, : 2 * _K], out=running)
    return Table(
        step=step,
        waiting=waiting,
        on_demand=on_demand,
        spot=spot,
        outlook=outlook,
        chain=chain,
        alive=alive,
        lost=lost,
    )


def _transitions(outlook: Outlook, step: float) -> tuple[Array, Array, Array]:
    """Return the odds of a step, for products from the right: column to row."""
    chains, alives, losses = [], [], []
    for zone in range(len(outlook.spot)):
        down, up = np.minimum(outlook.others[zone] * step, 1.0)
        others = np.array([[1 - up, up], [down, 1 - down]])
        own = _own_chain(outlook.losses[zone], outlook.returns[zone], step)
        chains.append(np.kron(own, others).T)
        # At most once a step, and at its end: so that lives are as long in the mean as they are.
        lost = np.minimum(outlook.losses[zone] * step, 1.0)
        alive = np.diag(1 - lost)
        for phase in range(_K - 1):
            aged = min(step / (PHASE_STARTS[phase + 1] - PHASE_STARTS[phase]), alive[phase, phase])
            alive[phase, phase] -= aged
            alive[phase, phase + 1] += aged
        alives.append(np.kron(alive, others).T)
        losses.append(np.einsum("k,op->pko", lost, others).reshape(2, 2 * _K))
    return np.array(chains), np.array(alives), np.array(losses)


def _own_chain(losses: Array, returns: Array, step: float) -> Array:
    """Return the odds of a zone's 2K states after a step, from row to column."""
    rates = np.zeros((2 * _K, 2 * _K))
    for phase in range(_K):
        rates[phase, _K] += losses[phase]
        rates[_K + phase, 0] += returns[phase]
        if phase < _K - 1:
            ages = 1 / (PHASE_STARTS[phase + 1] - PHASE_STARTS[phase])
            rates[phase, phase + 1] += ages
            rates[_K + phase, _K + phase + 1] += ages
    odds = rates * step
    total = odds.sum(axis=1, keepdims=True)
    odds /= np.maximum(total, 1.0)  # where a step is longer than a phase
    stay: Array = odds + np.diag(1 - odds.sum(axis=1))
    return stay
