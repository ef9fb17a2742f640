"""What the rest of a run is expected to cost, by hours left, work left and what is up.

Backward dynamic programming (value iteration over a finite horizon) on a model of the market: each
place has room or has none, with rates by age; the other places together have some or none; sooner
or later all of it is as usual again. Costs are USD, for the present prices.

Shapes: P places, W steps of work left, K phases of age, and two states of the others. A state of
a place is one of 2K: with room since phase k, or without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.policy.hazards import NUM_PHASES, PHASE_STARTS

Array = NDArray[np.float64]

_K = NUM_PHASES
# Of the tables while they are computed: a fifth less time than doubles, and the same choices.
_Small = np.float32
# What cannot be paid: the deadline is missed.
_FACTOR_OF_MISSING = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is believed of P places; rates are per hour."""

    spot: Array  # [P], USD per hour
    on_demand: Array  # [P], USD per hour
    losses: Array  # [P, K], of a node on spot
    place_losses: Array  # [P, K], of all room in the place
    place_returns: Array  # [P, K]
    second: Array  # [P], chance that the place has room when a node is lost
    others: Array  # [P, 2], how often the other places lose all room, and have some again
    moves: Array  # [P, P], USD
    odds: Array  # [P, P], of going from place to place, where the others have room


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What a table reaches over, in hours; with no more slack than `reserve` it is on demand."""

    hours: float
    work: float
    step: float
    restart: float
    """At most a step."""
    reserve: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Expected USD by [steps left, place, work left, state]; states of the others vary fastest."""

    step: float
    """Hours of a step."""
    waiting: NDArray[np.float32]  # 4K states
    on_demand: NDArray[np.float32]  # 4K
    spot: NDArray[np.float32]  # 2K: only those with room
    outlook: Outlook
    chain: Array  # [P, 4K, 4K], of a place and the others, from column to row
    alive: Array  # [P, 2K, 2K], of a node and the others
    lost: Array  # [P, 2, 2K], to the state of the others

    def if_waiting(self, place: int, left: float, work: float, state: int) -> float:
        """Return the cost of doing nothing for a step."""
        return self._mean(self.waiting, place, left - self.step, work, self.chain[place, :, state])

    def if_on_demand(self, place: int, left: float, work: float, state: int, cold: float) -> float:
        """Return the cost of a step on demand, `cold` hours of which train nothing."""
        usd = float(self.outlook.on_demand[place]) * min(self.step, work + cold)
        after = work + cold - self.step
        return usd + self._mean(
            self.on_demand, place, left - self.step, after, self.chain[place, :, state]
        )

    def if_spot(
        self, place: int, left: float, work: float, state: int, cold: float, usd_per_hour: float
    ) -> float:
        """Return the cost of a step on spot; `state` is that of a node with room."""
        left, after = left - self.step, work + cold - self.step
        usd = usd_per_hour * min(self.step, work + cold)
        usd += self._mean(self.spot, place, left, after, self.alive[place, :, state])
        waiting = self._at(self.waiting, place, left, after)
        second = float(self.outlook.second[place])
        young, none = waiting[0:2], waiting[2 * _K : 2 * _K + 2]
        return usd + float(self.lost[place, :, state] @ (second * young + (1 - second) * none))

    def _mean(
        self, table: NDArray[np.float32], place: int, left: float, work: float, odds: Array
    ) -> float:
        return float(self._at(table, place, left, work) @ odds)

    def _at(
        self, table: NDArray[np.float32], place: int, left: float, work: float
    ) -> NDArray[np.float32]:
        """Interpolate between the grid's points."""
        row, column = max(left, 0.0) / self.step, max(work, 0.0) / self.step
        i, k = min(int(row), table.shape[0] - 2), min(int(column), table.shape[2] - 2)
        a, b = min(row - i, 1.0), min(column - k, 1.0)
        near = table[i : i + 2, place, k : k + 2]
        rows = (1 - b) * near[:, 0] + b * near[:, 1]
        mixed: NDArray[np.float32] = (1 - a) * rows[0] + a * rows[1]
        return mixed


def state_of(phase: int, *, is_up: bool, others_up: bool) -> int:
    """Return the number of a place's state."""
    return 2 * (phase + (0 if is_up else _K)) + others_up


def solve(
    outlook: Outlook, grid: Grid, usual: Table | None = None, turns_per_hour: float = 0.0
) -> Table:
    """Return the table for up to so many hours and so much work.

    `usual` is what the market turns to, `turns_per_hour` times an hour; one of the same step, and
    at least as large.
    """
    hours, work, step, restart = grid.hours, grid.work, grid.step, grid.restart
    num_steps, num_work = math.ceil(hours / step) + 1, math.ceil(work / step) + 1
    num_places = len(outlook.spot)
    chain, alive, lost = _transitions(outlook, step)
    by_chain, by_alive, by_lost = (one.astype(_Small) for one in (chain, alive, lost))
    waiting = np.empty((num_steps + 1, num_places, num_work + 1, 4 * _K), _Small)
    on_demand = np.empty_like(waiting)
    spot = np.empty((num_steps + 1, num_places, num_work + 1, 2 * _K), _Small)
    work_left = np.arange(num_work + 1) * step
    # From here to the end on demand, in the place or the cheapest other one.
    cheapest = np.argmin(outlook.on_demand * work + outlook.moves, axis=1)
    way = outlook.moves[np.arange(num_places), cheapest]
    safe = (outlook.on_demand[cheapest, None] * (work_left + restart) + way[:, None]).astype(_Small)
    stay = (outlook.on_demand[:, None] * work_left).astype(_Small)
    missing = _FACTOR_OF_MISSING * float(outlook.on_demand.max()) * (work + restart)
    idle = np.full((num_places, num_work + 1, 4 * _K), missing, _Small)
    paid = idle.copy()
    running = np.full((num_places, num_work + 1, 2 * _K), missing, _Small)
    for table in (idle, paid, running):
        table[:, 0] = 0
    waiting[0], on_demand[0], spot[0] = idle, paid, running

    trained = (np.minimum(1.0, work_left / step)[None, :, None]).astype(_Small)
    spot_usd = ((outlook.spot * step)[:, None, None]).astype(_Small)
    on_demand_usd = ((outlook.on_demand * step)[:, None, None]).astype(_Small)
    spot_run, on_demand_run = spot_usd * trained, on_demand_usd * trained
    cold = restart / step
    move = ((outlook.odds * outlook.moves).sum(axis=1)[:, None]).astype(_Small)
    second = (outlook.second[:, None, None]).astype(_Small)
    # Of the others of the place that one goes to: nothing is known of them.
    some = (outlook.others[:, 1] / np.maximum(outlook.others.sum(axis=1), 1e-12)).astype(_Small)
    odds = outlook.odds.astype(_Small)
    has_others = num_places > 1
    turn = 0.0 if usual is None else turns_per_hour * step
    for count in range(1, num_steps + 1):
        after_idle, after_paid = idle @ by_chain, paid @ by_chain
        split = idle.reshape(num_places, num_work + 1, 2 * _K, 2)
        after_lost = second * split[:, :, 0] + (1 - second) * split[:, :, _K]
        after_spot = running @ by_alive + after_lost @ by_lost
        if usual is not None:
            size = slice(num_work + 1)
            after_idle += turn * (usual.waiting[count - 1, :, size] - after_idle)
            after_paid += turn * (usual.on_demand[count - 1, :, size] - after_paid)
            after_spot += turn * (usual.spot[count - 1, :, size] - after_spot)
        shifted_spot, shifted_paid = _less_work(after_spot), _less_work(after_paid)
        start = spot_usd + cold * after_spot[:, :, :2] + (1 - cold) * shifted_spot[:, :, :2]
        start_paid = on_demand_usd + cold * after_paid + (1 - cold) * shifted_paid
        idle = np.minimum(after_idle, start_paid)
        states = idle.reshape(num_places, num_work + 1, 2 * _K, 2)
        np.minimum(states[:, :, :_K], start[:, :, None], out=states[:, :, :_K])
        if has_others:
            there = start[:, :, 0] * (1 - some)[:, None] + start[:, :, 1] * some[:, None]
            elsewhere = odds @ there + move
            np.minimum(states[..., 1], elsewhere[:, :, None], out=states[..., 1])
        left = count * step
        num_safe = _num_within(left - grid.reserve, step, num_work)
        num_possible = _num_within(left - restart, step, num_work)
        np.minimum(idle, safe[:, :, None], out=idle)
        idle[:, num_safe:num_possible] = safe[:, num_safe:num_possible, None]
        idle[:, num_possible:] = missing
        idle[:, 0] = 0
        paid = np.minimum(on_demand_run + shifted_paid, idle)
        num_staying = _num_within(left, step, num_work)
        np.minimum(paid[:, :num_staying], stay[:, :num_staying, None], out=paid[:, :num_staying])
        paid[:, 0] = 0
        running = np.minimum(spot_run + shifted_spot, idle[:, :, : 2 * _K])
        running[:, 0] = 0
        waiting[count], on_demand[count], spot[count] = idle, paid, running
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


def _num_within(hours: float, step: float, most: int) -> int:
    """Return how many multiples of a step, from 0 to the `most`th, are not more than `hours`."""
    return min(max(math.floor(hours / step + 1e-9), -1), most) + 1


def _less_work(values: Array) -> Array:
    """Return the values after a whole step of work: those of one step less of it."""
    shifted = np.empty_like(values)
    shifted[:, 1:] = values[:, :-1]
    shifted[:, 0] = 0
    return shifted


def _transitions(outlook: Outlook, step: float) -> tuple[Array, Array, Array]:
    """Return the odds of a step, for products from the right: column to row."""
    chains, alives, losses = [], [], []
    for place in range(len(outlook.spot)):
        down, up = np.minimum(outlook.others[place] * step, 1.0)
        others = np.array([[1 - up, up], [down, 1 - down]])
        own = _own_chain(outlook.place_losses[place], outlook.place_returns[place], step)
        chains.append(np.kron(own, others).T)
        # At most once a step, and at its end: so that lives are as long in the mean as they are.
        lost = np.minimum(outlook.losses[place] * step, 1.0)
        alive = np.diag(1 - lost)
        for phase in range(_K - 1):
            aged = min(step / (PHASE_STARTS[phase + 1] - PHASE_STARTS[phase]), alive[phase, phase])
            alive[phase, phase] -= aged
            alive[phase, phase + 1] += aged
        alives.append(np.kron(alive, others).T)
        losses.append(np.einsum("k,op->pko", lost, others).reshape(2, 2 * _K))
    return np.array(chains), np.array(alives), np.array(losses)


def _own_chain(losses: Array, returns: Array, step: float) -> Array:
    """Return the odds of a place's 2K states after a step, from row to column."""
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
