"""How often do 95 % intervals of a win rate hold the truth? Ours beside the plain bootstrap's.

Run: python -m benchmarks.intervals          (a minute)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

import numpy as np

from orchestrator.evaluation.arithmetic import estimate

_EVALUATIONS = 1_000
_RESAMPLES = 2_000
# Chances of a win and of a tie, from even to one-sided.
_TRUTHS = ((0.5, 0.0), (0.35, 0.3), (0.6, 0.2), (0.8, 0.1), (0.9, 0.05), (0.95, 0.03))
_NUM_QUESTIONS = (20, 80)

Interval = Callable[[Sequence[float]], tuple[float, float]]


def ours(points: Sequence[float]) -> tuple[float, float]:
    """Return the interval that `orchestrate eval` gives."""
    found = estimate(points, 0.0, 1.0)
    assert found is not None
    return found.low, found.high


def plain(points: Sequence[float]) -> tuple[float, float]:
    """Return the percentile bootstrap (Efron 1979), nothing added."""
    values = np.asarray(points)
    drawn = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def coverage(interval: Interval, win: float, tie: float, num_questions: int) -> tuple[int, float]:
    """Return how many of 1,000 intervals hold the truth, and their mean width."""
    generator = np.random.default_rng(1)
    truth, held, width = win + tie / 2, 0, 0.0
    for _ in range(_EVALUATIONS):
        points = generator.choice([1.0, 0.5, 0.0], num_questions, p=[win, tie, 1 - win - tie])
        low, high = interval([float(one) for one in points])
        held += low <= truth <= high
        width += high - low
    return held, width / _EVALUATIONS


def main() -> None:
    """Print a table, and with --json a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    rows = []
    for num_questions in _NUM_QUESTIONS:
        for win, tie in _TRUTHS:
            row: dict[str, float] = {"questions": num_questions, "truth": win + tie / 2}
            for name, interval in (("ours", ours), ("plain", plain)):
                held, width = coverage(interval, win, tie, num_questions)
                row |= {f"{name}_held": held, f"{name}_width": round(width, 3)}
            rows.append(row)
            if not as_json:
                print("  ".join(f"{key} {value:g}" for key, value in row.items()), flush=True)
    if as_json:
        print(json.dumps({"schema_version": 1, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
