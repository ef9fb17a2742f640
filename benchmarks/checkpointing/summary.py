"""Medians, the targets that they are held against, and the table: pure functions of the runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.checkpointing.jobs import PASS_S, Figures, Variant
from train.config import Interval, RunHazard
from train.interval import SaveClock

# The table's columns, and whether one shows the range over the rounds beside the median.
SAVE_COLUMNS = {
    "stall_s": True,
    "staging_s": False,
    "step_extra_s": False,
    "durable_s": True,
    "load_s": False,
    "extra_rss_mb": False,
    "first_stall_s": False,
    "cpu_s": False,
    "server_cpu_s": False,
}
STEP_COLUMNS = {
    "slowdown": True,
    "step_s": False,
    "saving_step_s": False,
    "stall_beside_steps_s": False,
}

_STALL_VS_TORCH_SAVE = 1 / 100
_STALL_VS_BEST_PEER = 1 / 3
_DURABLE_VS_FASTEST_PEER = 1.1
_LOAD_VS_RAW = 1.2
_EXTRA_RSS_BEYOND_STATE_MB = 100.0
_CPU_SHARE = 0.03


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
        return [figures[figure] for figures in self.rounds.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A target, and what is to be at most that."""

    name: str
    target: float
    value: float
    state_gb: float
    note: str = ""

    @property
    def is_met(self) -> bool:
        """Say whether the target is met."""
        return self.value <= self.target


def check(rows: Iterable[Row], num_cores: int) -> list[Check]:
    """Return the checks that these rows allow.

    Rounds are compared one by one, since what disturbs a machine disturbs a round; the median of
    the ratios counts. Which peer is the best is decided by its own median.
    """
    found = {row.variant: row for row in rows if row.rounds}
    ours = found.get(Variant.OURS)
    if ours is None:
        return []
    peers = [row for row in found.values() if row.variant not in (Variant.OURS, Variant.RAW)]
    wanted = [
        ("stall_vs_torch_save", "stall_s", _STALL_VS_TORCH_SAVE, found.get(Variant.TORCH_SAVE)),
        ("stall_vs_best_peer", "stall_s", _STALL_VS_BEST_PEER, _best(peers, "stall_s")),
        (
            "durable_vs_fastest_peer",
            "durable_s",
            _DURABLE_VS_FASTEST_PEER,
            _best(peers, "durable_s"),
        ),
        ("load_vs_raw", "load_s", _LOAD_VS_RAW, found.get(Variant.RAW)),
    ]
    checks = [
        _ratio(name, figure, target, ours, other)
        for name, figure, target, other in wanted
        if other is not None and ours.rounds.keys() & other.rounds.keys()
    ]
    return [*checks, _memory(ours), _cpu_share(ours, num_cores)]


def summary_line(checks: list[Check]) -> str:
    """Return one line that says which targets are met."""
    met = [c.name for c in checks if c.is_met]
    missed = [f"{c.name} ({c.value:.3g} > {c.target:.3g})" for c in checks if not c.is_met]
    return f"met: {', '.join(met) or 'none'}; not met: {', '.join(missed) or 'none'}"


def table(rows: list[Row], columns: dict[str, bool]) -> list[str]:
    """Return the lines of a table of medians, with ranges where `columns` says so."""
    widths = {
        name: max(len(name), 24 if has_range else 8) + 2 for name, has_range in columns.items()
    }
    lines = [f"{'variant':<18}" + "".join(f"{name:>{widths[name]}}" for name in columns)]
    for row in rows:
        if row.rounds:
            cells = (f"{_cell(row, name, r):>{widths[name]}}" for name, r in columns.items())
            lines.append(f"{row.variant.value:<18}" + "".join(cells))
        lines += [f"{row.variant.value:<18}  failed: {error}" for error in row.errors]
    return lines


def _cell(row: Row, figure: str, has_range: bool) -> str:
    values = row.values(figure)
    text = _number(statistics.median(values))
    return f"{text} ({_number(min(values))}..{_number(max(values))})" if has_range else text


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _best(rows: list[Row], figure: str) -> Row | None:
    return min(rows, key=lambda row: row.median(figure), default=None)


def _ratio(name: str, figure: str, target: float, ours: Row, other: Row) -> Check:
    ratios = [
        ours.rounds[number][figure] / other.rounds[number][figure]
        for number in ours.rounds.keys() & other.rounds.keys()
    ]
    return Check(
        name=name,
        target=target,
        value=statistics.median(ratios),
        state_gb=ours.median("state_gb"),
        note=f"{figure} of ours / {other.variant.value}",
    )


def _memory(ours: Row) -> Check:
    """Hold the saver's memory against one copy of the state, which staging takes."""
    state_gb = ours.median("state_gb")
    return Check(
        name="extra_rss_mb",
        target=state_gb * 1000 + _EXTRA_RSS_BEYOND_STATE_MB,
        value=ours.median("extra_rss_mb"),
        state_gb=state_gb,
    )


def _cpu_share(ours: Row, num_cores: int) -> Check:
    """Hold the processor time of a save against that of all cores until the next one begins."""
    intervals_s = [_interval_s(figures) for figures in ours.rounds.values()]
    shares = [
        cpu_s / (num_cores * interval_s)
        for cpu_s, interval_s in zip(ours.values("cpu_s"), intervals_s, strict=True)
    ]
    return Check(
        name="cpu_share",
        target=_CPU_SHARE,
        value=statistics.median(shares),
        state_gb=ours.median("state_gb"),
        note=f"{num_cores} cores, a save every {statistics.median(intervals_s):.1f} s",
    )


def _interval_s(figures: Figures) -> float:
    """Return what the trainer's clock chooses on a node that is new, where it saves most often."""
    clock = SaveClock(Interval(), RunHazard(), num_nodes=1, now_s=0.0)
    clock.note_stall(figures["stall_s"])
    clock.note_durable(figures["durable_s"])
    clock.note_step(PASS_S, is_saving=False)
    clock.note_step(PASS_S + figures["step_extra_s"], is_saving=True)
    return clock.interval_s(now_s=0.0)
