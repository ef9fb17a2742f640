"""Simulate seeds: python -m tests.simulation [--seeds N] [--first N] [--jobs N] [--seed N].

With --seed, one of them with its history; a seed that fails here fails alone in the same way.
"""

# ruff: noqa: T201 a script prints its results

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from decimal import Decimal

from tests.fault_record import record_fault
from tests.simulation.plan import ROWS
from tests.simulation.world import Outcome, simulate

_LONGEST = 400


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_at_least_one, default=500, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=_at_least_one, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seed", type=int, help="one seed, with its history")
    options = parser.parse_args()
    if options.seed is not None:
        return _tell(simulate(options.seed))
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        seeds = range(options.first, options.first + options.seeds)
        outcomes = [_note(one) for one in pool.imap_unordered(simulate, seeds, chunksize=4)]
    _sum_up(outcomes, time.perf_counter() - began)
    _record(outcomes)
    return any(outcome.violations for outcome in outcomes)


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _tell(outcome: Outcome) -> int:
    print("\n".join(outcome.history))
    print(f"\nended: {outcome.ended}\ninjected: {dict(outcome.injected)}")
    for violation in outcome.violations:
        print(f"VIOLATION: {violation}")
    return bool(outcome.violations)


def _note(outcome: Outcome) -> Outcome:
    """Say at once what fails; histories are made again by --seed."""
    if outcome.violations:
        what = " | ".join(one[-_LONGEST:] for one in outcome.violations)
        print(f"seed {outcome.seed}: {what}", flush=True)
    outcome.history = []
    return outcome


def _sum_up(outcomes: list[Outcome], seconds: float) -> None:
    injected = sum((outcome.injected for outcome in outcomes), Counter())
    hours = sum(outcome.virtual_s for outcome in outcomes) / 3600
    print(f"{len(outcomes)} seeds, {hours:,.0f} hours of runs in {seconds:.0f} s")
    for what, count in injected.most_common():
        print(f"{count:8,} {what}")
    ends = Counter("the budget" if "rest of $" in str(one.ended) else one.ended for one in outcomes)
    for why, count in ends.most_common():
        print(f"{count:8,} ended: {why or 'its controller is gone for good'}")
    print(
        f"{sum(one.num_nodes for one in outcomes):8,} nodes, "
        f"{sum(one.num_commits for one in outcomes):,} commits, "
        f"{sum(one.num_replayed for one in outcomes):,} steps trained again and equal"
    )
    usd, off = (sum((getattr(o, n) for o in outcomes), Decimal(0)) for n in ("usd", "usd_off"))
    print(
        f"${usd:,.0f} of nodes; the ledger's times differ by ${off:,.2f} in sum, and by at most "
        f"{max(one.seconds_off for one in outcomes):.0f} s for a node that could be seen to go"
    )
    print(f"{sum(one.num_unheard for one in outcomes):8,} healthy nodes torn down unheard")
    strict = sum((outcome.strict for outcome in outcomes), Counter())
    looks = sum((outcome.looks for outcome in outcomes), Counter())
    for what in sorted(looks):
        print(f"{strict[what]:8,} of {looks[what]:,} looks at {what} with the tightest bound")
    bad = sorted(outcome.seed for outcome in outcomes if outcome.violations)
    print(f"{len(bad):8,} seeds with a violation{f': {bad}' if bad else ''}")


def _record(outcomes: list[Outcome]) -> None:
    """Leave a row for each fault, all with what was lost under them together."""
    injected = sum((outcome.injected for outcome in outcomes), Counter())
    for what, count in injected.items():
        record_fault(
            ROWS[what],
            f"{what} (simulated)",
            injected=count,
            committed_steps_lost=sum(one.steps_lost for one in outcomes),
            usd_unaccounted=sum((one.usd_unaccounted for one in outcomes), Decimal(0)),
            orphans=sum(one.num_orphans for one in outcomes),
            command=f"python -m tests.simulation --seeds {len(outcomes)}",
        )


if __name__ == "__main__":
    sys.exit(main())
