"""How well a forecast can do at all in one zone: `python -m benchmarks.moods --traces FOLDER`.

Zones are taken for hidden Markov chains in continuous time: one has room or has none, and is in one
of four moods that nobody sees, which say how often it loses its room and gets it back. The moods
are fitted to the first half of each record, by expectation and maximization (Baum et al. 1970; in
continuous time: Bladt and Sorensen 2005). Then zones are drawn from that law, and jobs in them are
forecast by the same law from all that was seen of the zone (forward algorithm, Rabiner 1989): what
is left of error nobody can avoid who does not know more than the law.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.policy import DEADLINES, RESTARTS_MIN, half_of
from orchestrator.policy.named import POLICIES
from orchestrator.simulate.job import simulate
from orchestrator.simulate.market import Market, join_zones
from orchestrator.simulate.terms import Terms
from orchestrator.simulate.traces import read_traces

Array = NDArray[np.float64]

# Where the search begins: steady, unsteady, flapping, scarce; losses and returns per hour.
_BEGIN = ((0.05, 2.0), (0.4, 1.5), (4.0, 4.0), (3.0, 0.2))
_TURNS_PER_HOUR = 0.1
# No zone counts for more than so many hours.
_MOST_HOURS = 250.0
# Moods are taken to have turned once in so many hours, so that none lasts for ever.
_PRIOR_HOURS, _PRIOR_TURNS = 6.0, 0.5
# Points of a tick at which what goes on in it is reckoned.
_POINTS = (np.arange(4) + 0.5) / 4

# Of the jobs that are forecast.
_WORK, _TICK_HOURS, _SEEN_HOURS, _NUM_FUTURES = 48.0, 1 / 6, 168.0, 99
_SPOT_USD, _ON_DEMAND_USD = 1.0, 3.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moods:
    """K moods; rates are per hour. A state is one of 2K: with room in each mood, then without."""

    losses: Array  # [K], of room
    returns: Array  # [K]
    turns: Array  # [K, K], from mood to mood; the diagonal makes rows sum to 0

    @property
    def rates(self) -> Array:
        """The generator of the chain, [2K, 2K], from row to column."""
        return np.block(
            [
                [self.turns - np.diag(self.losses), np.diag(self.losses)],
                [np.diag(self.returns), self.turns - np.diag(self.returns)],
            ]
        )

    def after(self, hours: float) -> Array:
        """Return the odds of each state after a while, [2K, 2K], from row to column."""
        return exponential(self.rates * hours)

    def in_the_long_run(self) -> Array:
        """Return the share of time in each state, [2K]."""
        rates = self.rates
        every = np.vstack([rates.T, np.ones(len(rates))])
        right = np.append(np.zeros(len(rates)), 1.0)
        shares: Array = np.linalg.lstsq(every, right, rcond=None)[0]
        return shares


@dataclass(frozen=True, slots=True)
class Series:
    """One zone's record."""

    tick_hours: float
    room: NDArray[np.bool_]

    @property
    def weight(self) -> float:
        """How much each of its hours counts."""
        return min(1.0, _MOST_HOURS / (len(self.room) * self.tick_hours))


def series_of(folder: Path) -> list[Series]:
    """Return the first half of each zone's record."""
    found = []
    for path in sorted(one for one in folder.iterdir() if one.is_dir()):
        traces = read_traces(path)
        hours = min(trace.hours for trace in traces)
        for trace in traces:
            nodes = half_of(trace, hours, first=True).available_nodes
            found.append(Series(trace.gap_seconds / 3600, np.array(nodes) >= 1))
    return found


def improve(moods: Moods, every: Sequence[Series]) -> tuple[Moods, float]:
    """Return the moods of one more step of the search, and the log likelihood before it."""
    count = len(moods.losses)
    turns, times, likelihood = np.zeros((2 * count, 2 * count)), np.zeros(2 * count), 0.0
    for series in every:
        ends, fits = _pairs(moods, series)
        likelihood += series.weight * fits
        # Hours spent in states (the diagonal) and turns between them, given both ends of ticks.
        spent = np.zeros_like(turns)
        for point in _POINTS * series.tick_hours:
            before = exponential(moods.rates * point)
            after = exponential(moods.rates * (series.tick_hours - point))
            spent += before.T @ ends @ after.T * series.tick_hours / len(_POINTS)
        times += series.weight * np.diag(spent)
        turns += series.weight * spent * moods.rates
    room, none = slice(0, count), slice(count, None)
    between = turns[room, room] + turns[none, none] + _PRIOR_TURNS / (count - 1)
    between /= (times[room] + times[none] + _PRIOR_HOURS)[:, None]
    np.fill_diagonal(between, 0.0)
    np.fill_diagonal(between, -between.sum(axis=1))
    better = Moods(
        losses=np.diag(turns[room, none]) / times[room],
        returns=np.diag(turns[none, room]) / times[none],
        turns=between,
    )
    return better, likelihood


def _pairs(moods: Moods, series: Series) -> tuple[Array, float]:
    """Return the expected number of ticks from state to state over their odds, and the fit."""
    count, room = len(moods.losses), series.room.astype(int)
    step = moods.after(series.tick_hours)
    possible = np.repeat([[0.0, 1.0], [1.0, 0.0]], count, axis=1)
    forward, backward = np.zeros((2, len(room), 2 * count))
    scale = np.zeros(len(room))
    odds = moods.in_the_long_run()
    for tick, has_room in enumerate(room):
        odds = (odds if tick == 0 else odds @ step) * possible[has_room]
        scale[tick] = odds.sum()
        odds = forward[tick] = odds / scale[tick]
    backward[-1] = 1.0
    for tick in range(len(room) - 1, 0, -1):
        backward[tick - 1] = step @ (possible[room[tick]] * backward[tick]) / scale[tick]
    later = possible[room[1:]] * backward[1:] / scale[1:, None]
    return forward[:-1].T @ later, float(np.log(scale).sum())


def exponential(rates: Array) -> Array:
    """Return the matrix exponential, by its eigenvalues."""
    values, vectors = np.linalg.eig(rates)
    found: Array = ((vectors * np.exp(values)) @ np.linalg.inv(vectors)).real
    return np.maximum(found, 0.0)


def present_states(room: NDArray[np.bool_], tick_hours: float, moods: Moods) -> Array:
    """Return the odds of a zone's states at the end of its record, [2K]."""
    num_moods = len(moods.losses)
    step = moods.after(tick_hours)
    possible = np.repeat([[False, True], [True, False]], num_moods, axis=1)
    odds = moods.in_the_long_run() * possible[int(room[0])]
    for has_room in room[1:]:
        odds = (odds @ step) * possible[int(has_room)]
        odds /= odds.sum()
    found: Array = odds / odds.sum()
    return found


def go_on(
    odds: Array,
    tick_hours: float,
    num_ticks: int,
    count: int,
    dice: np.random.Generator,
    moods: Moods,
) -> NDArray[np.bool_]:
    """Return so many ways for a zone to go on that is in these states now, [count, ticks]."""
    num_moods = len(moods.losses)
    upto = np.cumsum(moods.after(tick_hours), axis=1)
    # One of each stratum, so that few ways have all states in their shares.
    strata = (dice.permutation(count) + dice.random(count)) / count
    states = np.searchsorted(np.cumsum(odds), strata)
    room = np.empty((count, num_ticks), dtype=np.bool_)
    for tick in range(num_ticks):
        states = (dice.random((count, 1)) > upto[states.clip(max=2 * num_moods - 1)]).sum(axis=1)
        room[:, tick] = states < num_moods
    return room


def ask(moods: Moods, terms: Terms, policy: str, dice: np.random.Generator) -> tuple[float, bool]:
    """Return the relative error of one job's forecast, and whether it came to lie in p10 to p90."""
    seen, size = round(_SEEN_HOURS / _TICK_HOURS), math.ceil(terms.deadline / _TICK_HOURS)
    (zone,) = go_on(moods.in_the_long_run(), _TICK_HOURS, seen + size, 1, dice, moods)
    odds = present_states(zone[:seen], _TICK_HOURS, moods)
    futures = go_on(odds, _TICK_HOURS, size, _NUM_FUTURES, dice, moods)
    usd = sorted(_usd(room, terms, policy) for room in futures)
    came = _usd(zone[seen:], terms, policy)
    low, middle, high = (usd[round(share * (_NUM_FUTURES + 1)) - 1] for share in (0.1, 0.5, 0.9))
    return abs(middle - came) / came, low <= came <= high


def _usd(room: NDArray[np.bool_], terms: Terms, policy: str) -> float:
    return simulate(_market(room), 0, terms, POLICIES[policy]()).bill.usd


def _market(room: NDArray[np.bool_]) -> Market:
    return join_zones(
        names=("zone",),
        places=(("aws", "region"),),
        tick_hours=_TICK_HOURS,
        up=room[None, :],
        spot=np.full((1, len(room)), _SPOT_USD),
        on_demand=(_ON_DEMAND_USD,),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the moods, and what is left of error where they are all that can be known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moods", description=__doc__)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60, help="of the fit")
    parser.add_argument("--jobs", type=int, default=150, help="for each deadline and start")
    parser.add_argument("--policy", choices=list(POLICIES), default="uniform_progress")
    options = parser.parse_args(arguments)
    every = series_of(options.traces)
    losses, returns = np.array(_BEGIN).T
    turns = np.full((len(_BEGIN), len(_BEGIN)), _TURNS_PER_HOUR / (len(_BEGIN) - 1))
    np.fill_diagonal(turns, -_TURNS_PER_HOUR)
    moods, likelihood = Moods(losses=losses, returns=returns, turns=turns), 0.0
    for _ in range(options.steps):
        moods, likelihood = improve(moods, every)
    _print(moods, f"{len(every)} zones, log likelihood {likelihood:.1f}; per hour")
    dice = np.random.default_rng(0)
    kinds = (*(f"deadline {one:g}" for one in DEADLINES), *(f"{one} min" for one in RESTARTS_MIN))
    found: dict[str, list[tuple[float, bool]]] = {kind: [] for kind in (*kinds, "all")}
    for deadline in DEADLINES:
        for restart in RESTARTS_MIN:
            terms = Terms(work=_WORK, deadline=_WORK * deadline, restart=restart / 60)
            asked = [ask(moods, terms, options.policy, dice) for _ in range(options.jobs)]
            for kind in (f"deadline {deadline:g}", f"{restart} min", "all"):
                found[kind] += asked
    for kind, asked in found.items():
        errors, within = zip(*asked, strict=True)
        print(f"{kind:13s} {np.median(errors):.3f}, within p10 to p90 {np.mean(within):.2f}")
    return 0


def _print(moods: Moods, title: str) -> None:
    print(title)
    shares = moods.in_the_long_run().reshape(2, -1).sum(axis=0)
    for name, row in (
        ("losses", moods.losses),
        ("returns", moods.returns),
        *(("turns", row) for row in moods.turns),
        ("share of time", shares),
    ):
        print(f"{name:13s}", *(f"{one:8.4f}" for one in row))


if __name__ == "__main__":
    sys.exit(main())
