"""Policies on recorded markets: `python -m benchmarks.policy --traces FOLDER [--json]`.

FOLDER holds folders of traces, each a market. Jobs are paired: every policy gets the same starts.
Each market is cut in two by time; parameters may be chosen on the first half, the figures are of
the second (`--half first` shows the other). Targets hold as the papers have it: every zone is seen,
billing is plain.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from orchestrator.simulate.adversarial import adversarial_markets
from orchestrator.simulate.market import Market, make_market
from orchestrator.simulate.study import Outcome, bootstrap, draw_starts, run_jobs, study, summarize
from orchestrator.simulate.terms import Billing, Observe, Terms
from orchestrator.simulate.traces import read_traces
from orchestrator.simulate.zone_trace import ZoneTrace, num_gpus_of
from orchestrator.weather import usual_pace

POLICIES = ("greedy", "uniform_progress", "skynomad", "auto")
# Work in hours that the markets' halves have room for, and deadlines in multiples of it.
_WORK = {"v100": 48.0, "h100": 30.0}
DEADLINES = (1.1, 1.25, 1.5)
RESTARTS_MIN = (3, 12)
STATE_GB = 50.0
_NUM_TIMED, _NUM_TIMED_ZONES = 1_000, 9
_ADVERSARIAL_HOURS = 96.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One question: a market for a gang of nodes."""

    market: str
    zones: tuple[str, ...]
    num_nodes: int

    @property
    def kind(self) -> str:
        """Of the market."""
        if len(self.zones) == 1:
            return "one zone"
        return "several zones" if self.num_nodes == 1 else "gangs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy's answer; ratios are means over jobs."""

    market: str
    zones: int
    nodes: int
    restart_min: int
    deadline: float
    policy: str
    jobs: int
    missed: int
    mean_usd: float
    vs_optimal: float
    low: float
    high: float
    vs_uniform_progress: float
    vs_uniform_progress_low: float
    vs_uniform_progress_high: float
    ratios: tuple[float, ...]
    """To uniform_progress, by job."""


def cases(folder: Path) -> Iterator[tuple[Case, list[ZoneTrace]]]:
    """Yield each zone by itself, all zones of a market together, and gangs where there are any."""
    for path in sorted(one for one in folder.iterdir() if one.is_dir()):
        traces = read_traces(path)
        most = max(max(trace.available_nodes) for trace in traces)
        for trace in traces:
            yield Case(market=path.name, zones=(trace.zone,), num_nodes=1), [trace]
        names = tuple(trace.zone for trace in traces)
        for num_nodes in sorted({1, (most + 1) // 2, most}):
            yield Case(market=path.name, zones=names, num_nodes=num_nodes), traces


def half_of(trace: ZoneTrace, hours: float, *, first: bool) -> ZoneTrace:
    """Return one half of a record of so many hours; all zones are cut at the same instants."""
    num_ticks = int(hours * 3600 / trace.gap_seconds + 1e-9)
    part = slice(0, num_ticks // 2) if first else slice(num_ticks // 2, num_ticks)
    prices = trace.spot_usd_per_hour
    return trace.model_copy(
        update={
            "available_nodes": trace.available_nodes[part],
            "spot_usd_per_hour": prices[part] if isinstance(prices, list) else prices,
        }
    )


def rows_of(case: Case, market: Market, terms: Terms, deadline: float, jobs: int) -> list[Row]:
    """Return the rows of one question."""
    starts = draw_starts(market, terms, jobs, seed=0)
    outcomes = list(study(market, starts, terms, POLICIES))
    reference = _usd(outcomes, "uniform_progress")
    rows = []
    for name in POLICIES:
        summary = summarize(name, outcomes, market, terms)
        ratios = _usd(outcomes, name) / reference
        low, high = bootstrap(ratios)
        rows.append(
            Row(
                market=case.market,
                zones=len(case.zones),
                nodes=case.num_nodes,
                restart_min=round(terms.restart * 60),
                deadline=deadline,
                policy=name,
                jobs=summary.num_jobs,
                missed=summary.num_missed,
                mean_usd=summary.mean_usd,
                vs_optimal=summary.cost_vs_optimal,
                low=summary.interval[0],
                high=summary.interval[1],
                vs_uniform_progress=float(ratios.mean()),
                vs_uniform_progress_low=low,
                vs_uniform_progress_high=high,
                ratios=tuple(float(ratio) for ratio in ratios),
            )
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each market, gang, restart and deadline, and what they come to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy", description=__doc__)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=20, help="starts for each question")
    parser.add_argument("--half", choices=["first", "second", "both"], default="second")
    parser.add_argument("--only", default="", help="markets whose name has this in it")
    parser.add_argument("--observe", type=Observe, default=Observe.FREE)
    parser.add_argument("--billing", type=Billing, default=Billing.PLAIN)
    parser.add_argument("--several", action="store_true", help="no zones by themselves")
    parser.add_argument("--speed", action="store_true", help="time 1,000 jobs instead")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.speed:
        return _time_jobs(options.traces, options.only)
    rows: list[Row] = []
    for case, traces in cases(options.traces):
        if options.only not in case.market or (options.several and len(case.zones) == 1):
            continue
        if options.half != "both":
            hours = min(one.hours for one in traces)
            traces = [half_of(one, hours, first=options.half == "first") for one in traces]
        market = make_market(traces, case.num_nodes)
        for restart in RESTARTS_MIN:
            for deadline in DEADLINES:
                terms = terms_of(case, traces, restart, deadline)
                terms = replace(terms, observe=options.observe, billing=options.billing)
                found = rows_of(case, market, terms, deadline, options.jobs)
                rows += found
                if not options.json:
                    _print(found)
    if not options.json:
        _print_adversarial(options.jobs, options.observe)
    if options.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
    else:
        _conclude(rows)
    return 0


def terms_of(case: Case, traces: Sequence[ZoneTrace], restart_min: int, deadline: float) -> Terms:
    """Return the job of a question; its deadline is a multiple of its work."""
    work = work_of(case)
    return Terms(
        work=work,
        deadline=work * deadline,
        restart=restart_min / 60,
        state_gb=STATE_GB,
        failed_launch=1 / 30,
        pace=usual_pace(num_gpus_of(traces) or 1),
    )


def _print_adversarial(num_jobs: int, observe: Observe) -> None:
    """Print what policies cost on markets that are made against them, and what they miss."""
    num_missed = num = 0
    for name, market in adversarial_markets(_ADVERSARIAL_HOURS):
        terms = Terms(work=24, deadline=30, restart=0.1, state_gb=STATE_GB, observe=observe)
        starts = draw_starts(market, terms, num_jobs, seed=0)
        outcomes = list(study(market, starts, terms, POLICIES))
        found = [summarize(policy, outcomes, market, terms) for policy in POLICIES]
        num_missed += sum(one.num_missed for one in found)
        num += sum(one.num_jobs for one in found)
        parts = "  ".join(f"{one.name} {one.cost_vs_optimal:.3f}" for one in found)
        print(f"adversarial, {name:28s} {parts}", flush=True)
    print(f"adversarial, missed: {num_missed} of {num} jobs")


def work_of(case: Case) -> float:
    """Return the hours of a job that a half of the market's record has room for."""
    return _WORK["h100" if "h100" in case.market else "v100"]


def _time_jobs(folder: Path, only: str) -> int:
    """Print what 1,000 jobs take on all cores over nine zones, of the market of most zones.

    What it lacks are the same zones again, as they were a third of the record earlier.
    """
    found = [one for one in cases(folder) if only in one[0].market]
    case, traces = max(found, key=lambda one: (len(one[0].zones), -one[0].num_nodes))
    again = [_earlier(trace) for trace in traces]
    market = make_market([*traces, *again][:_NUM_TIMED_ZONES], case.num_nodes)
    terms = Terms(work=48, deadline=60, restart=0.1, state_gb=STATE_GB)
    starts = draw_starts(market, terms, _NUM_TIMED, seed=0)
    for name in POLICIES:
        began = time.perf_counter()
        num_missed = sum(one.is_late for one in run_jobs(market, starts, terms, name))
        seconds = time.perf_counter() - began
        print(
            f"{name}: {_NUM_TIMED:,} jobs over {len(market.names)} zones of {case.market} in "
            f"{seconds:.2f} s, {num_missed} missed"
        )
    return 0


def _earlier(trace: ZoneTrace) -> ZoneTrace:
    shift = len(trace.available_nodes) // 3
    prices = trace.spot_usd_per_hour
    return trace.model_copy(
        update={
            "region": f"{trace.region}-earlier",
            "zone": f"{trace.zone}-earlier",
            "available_nodes": trace.available_nodes[shift:] + trace.available_nodes[:shift],
            "spot_usd_per_hour": prices[shift:] + prices[:shift]
            if isinstance(prices, list)
            else prices,
        }
    )


def _usd(outcomes: Sequence[Outcome], name: str) -> np.ndarray:
    return np.array([outcome.ended[name].bill.usd for outcome in outcomes])


def _print(rows: list[Row]) -> None:
    first = rows[0]
    parts = [
        f"{row.policy} {row.vs_optimal:.3f}" + (f" MISSED {row.missed}" if row.missed else "")
        for row in rows
    ]
    ours = rows[-1]
    print(
        f"{first.market:18s} {first.zones} zones x{first.nodes:<2d} {first.restart_min:2d} min "
        f"{first.deadline:.2f}  {'  '.join(parts)}  vs up {ours.vs_uniform_progress:.3f} "
        f"({ours.vs_uniform_progress_low:.3f}-{ours.vs_uniform_progress_high:.3f})",
        flush=True,
    )


def _conclude(rows: list[Row]) -> None:
    """Print means over deadlines and starts, by market and over all of a kind."""

    def say(what: str, kept: list[Row]) -> None:
        means = {
            policy: np.mean([row.vs_optimal for row in kept if row.policy == policy])
            for policy in POLICIES
        }
        ours = [row for row in kept if row.policy == POLICIES[-1]]
        relative = [row.vs_uniform_progress for row in ours]
        low, high = bootstrap(np.array([ratio for row in ours for ratio in row.ratios]))
        parts = "  ".join(f"{policy} {mean:.3f}" for policy, mean in means.items())
        best = min(means[policy] for policy in POLICIES[:-1])
        print(
            f"{what:38s} {parts}  vs up {np.mean(relative):.3f} "
            f"({low:.3f}-{high:.3f}), at most {max(relative):.3f}; "
            f"vs best base {means[POLICIES[-1]] / best:.3f}"
        )

    print(f"missed: {sum(row.missed for row in rows)} of {sum(row.jobs for row in rows)} jobs")
    kinds: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        zones = "one zone" if row.zones == 1 else f"{row.zones} zones"
        kinds.setdefault((f"{row.market}, {zones} x{row.nodes}", row.restart_min), []).append(row)
        kind = "one zone" if row.zones == 1 else "several" if row.nodes == 1 else "gangs"
        kinds.setdefault((f"all, {kind}", row.restart_min), []).append(row)
    for (name, restart), kept in sorted(kinds.items()):
        say(f"{name}, {restart} min", kept)
    for what, found, most in _targets(rows):
        verdict = "met" if found <= most else "NOT MET"
        print(f"target: {what:62s} {found:6.3f}, at most {most:5.2f}: {verdict}")


def _targets(rows: list[Row]) -> Iterator[tuple[str, float, float]]:
    """Yield what is asked of `auto`, what it came to, and what it may be."""
    ours = [row for row in rows if row.policy == POLICIES[-1]]
    yield "deadlines missed, by any policy", float(sum(row.missed for row in rows)), 0.0
    for restart, most in zip(RESTARTS_MIN, (1.05, 1.10), strict=True):
        kept = [row for row in ours if row.zones == 1 and row.restart_min == restart]
        yield from _ratio(f"one zone, {restart} min: x optimal", kept, most)
        if kept:
            _, high = bootstrap(np.array([ratio for row in kept for ratio in row.ratios]))
            yield f"one zone, {restart} min: x uniform_progress, upper end of 95 %", high, 1.0
    for market in sorted({row.market for row in ours}):
        for restart in RESTARTS_MIN:
            kept = [row for row in ours if (row.market, row.restart_min) == (market, restart)]
            ratios = [row.vs_uniform_progress for row in kept if row.zones == 1]
            if ratios:
                what = f"{market}, one zone, {restart} min: x uniform_progress"
                yield what, float(np.mean(ratios)), 1.01
    several = [row for row in ours if row.zones > 1 and row.nodes == 1]
    yield from _ratio("at least four zones: x optimal", [r for r in several if r.zones > 3], 1.06)
    yield from _ratio("fewer zones: x optimal", [r for r in several if r.zones <= 3], 1.20)
    gangs = [row for row in rows if row.nodes > 1]
    if gangs:
        means = {
            name: float(np.mean([row.vs_optimal for row in gangs if row.policy == name]))
            for name in POLICIES
        }
        best = min(means[name] for name in POLICIES[:-1])
        yield "gangs: x the best of the other policies", means[POLICIES[-1]] / best, 1.03


def _ratio(what: str, kept: list[Row], most: float) -> Iterator[tuple[str, float, float]]:
    if kept:
        yield what, float(np.mean([row.vs_optimal for row in kept])), most


if __name__ == "__main__":
    sys.exit(main())
