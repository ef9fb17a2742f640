"""Chart geometry: numbers in, positions out, all as percentages of the plot.

Percentages let the page draw SVG that follows the window's width while its text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Finer than a pixel of the widest plot; keeps a page of a week-long run small.
NUM_BINS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A labelled position on an axis; `anchor` keeps the outer labels inside the plot."""

    at: float
    label: str
    anchor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A linear axis from `low` to `high`."""

    title: str
    low: float
    high: float
    ticks: tuple[Tick, ...]

    def place(self, value: float) -> float:
        """Return where a value lies, in percent."""
        return place(value, self.low, self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of a bar."""

    kind: str
    start: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A stretch of a value axis that one kind of thing takes up."""

    kind: str
    start: float
    end: float


def place(value: float, low: float, high: float) -> float:
    """Return the value's position between low and high in percent, cut off at the ends."""
    if high <= low:
        return 0.0
    return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 3)


def nice_ticks(low: float, high: float, at_most: int) -> tuple[float, ...]:
    """Return round numbers (1, 2 or 5 times a power of ten) within [low, high]."""
    if not high > low:
        return (low,)
    raw = (high - low) / max(1, at_most)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(
        magnitude * factor for factor in (1, 2, 5, 10, 20) if magnitude * factor >= raw * 0.999999
    )
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Multiples of the step, cleaned of binary dust such as 0.30000000000000004.
    return tuple(float(f"{number * step:.12g}") for number in range(first, last + 1))


def make_axis(
    title: str, low: float, high: float, at_most: int, write: Callable[[float], str]
) -> Axis:
    """Return an axis with round ticks."""
    return Axis(
        title=title,
        low=low,
        high=high,
        ticks=tuple(
            _tick(place(value, low, high), write(value)) for value in nice_ticks(low, high, at_most)
        ),
    )


def padded_range(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """Return a range that holds the values with some room; a single value gets a range too."""
    low, high = min(values), max(values)
    pad = (high - low) * margin or abs(high) * margin or 1.0
    return low - pad, high + pad


def dominant_segments(
    intervals: Sequence[Interval], low: float, high: float, num_bins: int = NUM_BINS
) -> tuple[Segment, ...]:
    """Colour each bin by what takes up most of it, and join equal neighbours.

    Thousands of intervals become at most `num_bins` segments; a bin that is mostly empty stays so.
    """
    width = (high - low) / num_bins
    if width <= 0:
        return ()
    shares: dict[int, dict[str, float]] = {}
    for interval in intervals:
        first = max(0, int((interval.start - low) / width))
        last = min(num_bins - 1, int((interval.end - low) / width))
        for index in range(first, last + 1):
            left = low + index * width
            overlap = min(interval.end, left + width) - max(interval.start, left)
            kinds = shares.setdefault(index, {})
            kinds[interval.kind] = kinds.get(interval.kind, 0.0) + max(0.0, overlap)
    named = {
        index: max(kinds, key=lambda kind: (kinds[kind], kind))
        for index, kinds in shares.items()
        if sum(kinds.values()) >= width / 2
    }
    return _join(named, num_bins)


def stack_segments(amounts: Sequence[tuple[str, float]]) -> tuple[Segment, ...]:
    """Lay amounts end to end so that they fill the bar; nothing is drawn for zeros."""
    total = math.fsum(amount for _, amount in amounts)
    segments, done = [], 0.0
    for kind, amount in amounts:
        if total > 0 and amount > 0:
            start, end = place(done, 0, total), place(done + amount, 0, total)
            segments.append(Segment(kind=kind, start=start, width=round(end - start, 3)))
            done += amount
    return tuple(segments)


def thin(
    points: Sequence[tuple[float, float]], at_most: int = NUM_BINS
) -> tuple[tuple[float, float], ...]:
    """Keep each bin's lowest and highest point, so that a long curve keeps its spikes."""
    if len(points) <= at_most:
        return tuple(points)
    size = math.ceil(2 * len(points) / at_most)
    kept: list[tuple[float, float]] = []
    for begin in range(0, len(points), size):
        several = points[begin : begin + size]
        ends = {
            min(range(len(several)), key=lambda index: several[index][1]),
            max(range(len(several)), key=lambda index: several[index][1]),
        }
        kept += [several[index] for index in sorted(ends)]
    return tuple(kept)


def polyline(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    """Return the points attribute of a line in a plot of 100 by 100, y upwards."""
    return " ".join(f"{x.place(a):g},{round(100 - y.place(b), 3):g}" for a, b in points)


def stagger(positions: Sequence[float], gap: float, num_levels: int) -> tuple[int | None, ...]:
    """Return a level for each label (positions ascending) so that none overlap; None is hidden."""
    taken = [-math.inf] * num_levels
    levels: list[int | None] = []
    for position in positions:
        free = [level for level in range(num_levels) if position - taken[level] >= gap]
        if not free:
            levels.append(None)
            continue
        taken[free[0]] = position
        levels.append(free[0])
    return tuple(levels)


def _tick(at: float, label: str) -> Tick:
    anchor = "start" if at < 1 else "end" if at > 99 else "middle"
    return Tick(at=at, label=label, anchor=anchor)


def _join(named: dict[int, str], num_bins: int) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    previous = -2
    for index in sorted(named):
        start, end = place(index, 0, num_bins), place(index + 1, 0, num_bins)
        if index == previous + 1 and segments[-1].kind == named[index]:
            last = segments.pop()
            start = last.start
        segments.append(Segment(kind=named[index], start=start, width=round(end - start, 3)))
        previous = index
    return tuple(segments)
