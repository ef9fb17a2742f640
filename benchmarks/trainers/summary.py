"""Medians over the rounds, the targets, and how they are printed: pure functions of the runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from benchmarks.trainers.jobs import Figures, Variant

# Tokens per second of processor time of ours, as a multiple of the peer's.
_LEAST_RATIOS = {Variant.PADDING: 1.9, Variant.HF_TRAINER: 1.25, Variant.TRL_PACKED: 1.3}
_FIGURES = ("tokens_per_cpu_s", "tokens_per_s", "peak_rss_mb")
_MOST_OUTSIDE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All rounds of a variant, by number; one that failed is told of in `errors` instead."""

    variant: Variant
    rounds: dict[int, Figures] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def median(self, figure: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(self.values(figure))

    def values(self, figure: str) -> list[float]:
        """Return what every round measured."""
        return [float(getattr(figures, figure)) for figures in self.rounds.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How much faster ours is than a peer, and how much it should be at least."""

    name: str
    target: float
    value: float

    @property
    def is_met(self) -> bool:
        """Say whether the target is met."""
        return self.value >= self.target


def check(rows: Iterable[Row]) -> list[Check]:
    """Return the median over the rounds of each ratio: what disturbs a round disturbs both."""
    found = {row.variant: row for row in rows if row.rounds}
    ours = found.get(Variant.OURS)
    if ours is None:
        return []
    checks = []
    for variant, target in _LEAST_RATIOS.items():
        peer = found.get(variant)
        both = ours.rounds.keys() & peer.rounds.keys() if peer is not None else set()
        if peer is None or not both:
            continue
        ratios = [
            ours.rounds[number].tokens_per_cpu_s / peer.rounds[number].tokens_per_cpu_s
            for number in both
        ]
        value = statistics.median(ratios)
        checks.append(Check(name=f"ours_vs_{variant.value}", target=target, value=value))
    return checks


def row_record(row: Row) -> dict[str, object]:
    """Return a row of the document."""
    return {
        "variant": row.variant.value,
        **({name: row.median(name) for name in _FIGURES} if row.rounds else {}),
        "rounds": [{"round": n, **figures.model_dump()} for n, figures in row.rounds.items()],
        "errors": row.errors,
    }


def check_record(one: Check) -> dict[str, object]:
    """Return a check of the document."""
    return {**asdict(one), "met": one.is_met}


def table(rows: Iterable[Row]) -> list[str]:
    """Return the lines of a table of medians, with the range of what is compared."""
    lines = [f"{'variant':<12}{'tokens/cpu-s':>22}{'tokens/s':>10}{'peak RSS MB':>13}"]
    for row in rows:
        if row.rounds:
            rates = row.values("tokens_per_cpu_s")
            cell = f"{statistics.median(rates):.0f} ({min(rates):.0f}..{max(rates):.0f})"
            wall, memory = row.median("tokens_per_s"), row.median("peak_rss_mb")
            lines.append(f"{row.variant.value:<12}{cell:>22}{wall:>10.0f}{memory:>13.0f}")
        lines += [f"{row.variant.value:<12}  failed: {error}" for error in row.errors]
    return lines


def summary_lines(checks: Iterable[Check]) -> list[str]:
    """Return one line for each target."""
    return [
        f"{one.name}: {one.value:.2f}, target at least {one.target:g}"
        + ("" if one.is_met else " (not met)")
        for one in checks
    ]


def profile_lines(rows: Iterable[Row]) -> list[str]:
    """Return where the loop's time went, of the last round that was profiled."""
    profiled = [f for row in rows for f in row.rounds.values() if f.shares]
    if not profiled:
        return []
    figures = profiled[-1]
    shares = ", ".join(f"{name} {share:.1%}" for name, share in figures.shares.items())
    inside = [f"  {share:.2%} {name}" for name, share in figures.outside.items()]
    return [f"our loop: {shares}; target outside below {_MOST_OUTSIDE:.0%}", *inside]
