"""What simulated jobs cost: each beside the others, and cost against a value that was varied."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.dashboard.charts import Axis, Tick, make_axis, padded_range, polyline
from orchestrator.dashboard.curves import Dot
from orchestrator.dashboard.formats import write_share, write_usd
from orchestrator.simulate.study import Spread, spread
from orchestrator.simulate.what_if import Answer, Value

_NUM_TICKS = 6
# More dots than this lie on one another.
_MOST_DOTS = 200
# Between two labels of the narrowest plot, in percent.
_LABEL_GAP = 12.0
_EDGE = 7.0
_LONGEST_LABEL = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadRow:
    """All jobs of one policy, or of the optimum, on the axis; positions in percent."""

    kind: str
    label: str
    detail: str
    amount: str
    between: str
    summary: str
    low: float
    high: float
    p50: float
    dots: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spreads:
    """Rows over one axis of dollars."""

    axis: Axis
    rows: tuple[SpreadRow, ...]
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """The share of jobs that were late, as a bar."""

    at: float
    height: float
    label: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """A value that has no answer."""

    at: float
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisker:
    """From p10 to p90 of one value; `top` and `height` count from above."""

    at: float
    top: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CostCurve:
    """Cost against the values of one key; band and line are empty where values have no order.

    `misses` are empty where no job is late.
    """

    title: str
    x: Axis
    y: Axis
    band: str
    line: str
    whiskers: tuple[Whisker, ...]
    dots: tuple[Dot, ...]
    misses: tuple[Miss, ...]
    blocked: tuple[Blocked, ...]
    summary: str
    note: str


def label_of(values: Sequence[Value]) -> str:
    """Write values as they were given."""
    return ", ".join(f"{value.key.value} {value.text}" for value in values)


def build_spreads(answers: Sequence[Answer], *, has_optimum: bool) -> Spreads | None:
    """Return a row for each answer, the cheapest first, and one for the optimum before them."""
    able = [one for one in answers if one.summary is not None]
    if not able:
        return None
    rows = [(_name(one), one.policy, _usd(one)) for one in able]
    rows.sort(key=lambda row: sum(row[2]) / len(row[2]))
    if has_optimum:
        rows.insert(0, ("optimal", "", [job.optimal_usd for job in able[0].outcomes]))
    low, high = padded_range([usd for row in rows for usd in row[2]])
    axis = _usd_axis(max(0.0, low), high)
    return Spreads(
        axis=axis,
        rows=tuple(_spread_row(axis, *row) for row in rows),
        note="A dot is a job, the box holds the middle eight of ten, its line half of them.",
    )


def build_curves(answers: Sequence[Answer]) -> tuple[CostCurve, ...]:
    """Return cost against the first key, for each value of the second one and each policy."""
    groups: dict[tuple[str, str], list[Answer]] = {}
    for one in answers:
        groups.setdefault((label_of(one.case.values[1:]), one.policy), []).append(one)
    found = [one.summary for one in answers if one.summary is not None]
    low, high = padded_range(
        [usd for one in found for usd in (*one.usd, one.mean_usd)] or [0.0, 1.0]
    )
    y = _usd_axis(max(0.0, low), high)
    return tuple(_curve(rest, policy, several, y) for (rest, policy), several in groups.items())


def _name(one: Answer) -> str:
    return label_of(one.case.values) or one.policy


def _usd(one: Answer) -> list[float]:
    return [job.ended[one.policy].bill.usd for job in one.outcomes]


def _usd_axis(low: float, high: float) -> Axis:
    return make_axis("US dollars per job", low, high, _NUM_TICKS, lambda usd: f"${usd:,.12g}")


def _spread_row(axis: Axis, label: str, policy: str, usd: list[float]) -> SpreadRow:
    found, ranked = spread(usd), sorted(usd)
    shown = ranked[:: -(-len(ranked) // _MOST_DOTS)]
    mean = write_usd(sum(usd) / len(usd))
    between = f"{write_usd(found.p10)} to {write_usd(found.p90)}"
    return SpreadRow(
        kind="other" if label == "optimal" else "cost",
        label=label,
        detail="all known beforehand" if not policy else policy if policy != label else "",
        amount=mean,
        between=between,
        summary=f"{label}: {mean} on average over {len(usd)} jobs, eight of ten between {between}, "
        f"half below {write_usd(found.p50)}",
        low=axis.place(found.p10),
        high=axis.place(found.p90),
        p50=axis.place(found.p50),
        dots=tuple(axis.place(one) for one in shown),
    )


def _curve(rest: str, policy: str, answers: list[Answer], y: Axis) -> CostCurve:
    values = [one.case.values[0] for one in answers]
    key = values[0].key.value
    places, is_to_scale = _places(values)
    x = Axis(
        title=key,
        low=0,
        high=100,
        ticks=tuple(
            Tick(at=at, label=_shorten(value.text), anchor="middle")
            for at, value in zip(places, values, strict=True)
        ),
    )
    able = sorted(
        (
            (at, value, one)
            for at, value, one in zip(places, values, answers, strict=True)
            if one.summary is not None
        ),
        key=lambda found: found[0],
    )
    points = [(at, one.summary.usd) for at, _, one in able if one.summary is not None]
    has_order = all(value.number is not None for value in values) and len(points) > 1
    return CostCurve(
        title=", ".join(part for part in (policy, rest) if part),
        x=x,
        y=y,
        band=_band(points, x, y) if has_order else "",
        line=polyline([(at, usd.p50) for at, usd in points], x, y) if has_order else "",
        whiskers=() if has_order else tuple(_whisker(at, usd, y) for at, usd in points),
        dots=tuple(dot for at, value, one in able for dot in _dots(at, value, one, y)),
        misses=tuple(_miss(at, value, one) for at, value, one in able)
        if any(one.summary is not None and one.summary.num_missed for one in answers)
        else (),
        blocked=tuple(
            Blocked(at=at, title=f"{key} {value.text} is not possible: {one.case.why_not}")
            for at, value, one in zip(places, values, answers, strict=True)
            if one.summary is None
        ),
        summary=f"Cost against {key}: "
        + "; ".join(_words(value, one) for value, one in zip(values, answers, strict=True)),
        note=_note(is_to_scale=is_to_scale or not has_order, has_blocked=len(able) < len(answers)),
    )


def _note(*, is_to_scale: bool, has_blocked: bool) -> str:
    notes = [] if is_to_scale else ["Values are spaced evenly, not to scale."]
    return " ".join(
        [*notes, "A cross is not possible: the table says why."] if has_blocked else notes
    )


def _places(values: Sequence[Value]) -> tuple[list[float], bool]:
    """Return where values lie in percent, to scale if they have one and their labels have room."""
    numbers = [value.number for value in values if value.number is not None]
    even = [(n + 0.5) * 100 / len(values) for n in range(len(values))]
    if len(numbers) < len(values) or len(values) < 2:
        return even, False
    low, high = min(numbers), max(numbers)
    scaled = [_EDGE + (100 - 2 * _EDGE) * (one - low) / ((high - low) or 1) for one in numbers]
    if all(b - a >= _LABEL_GAP for a, b in itertools.pairwise(sorted(scaled))):
        return [round(one, 3) for one in scaled], True
    ranks = sorted(range(len(numbers)), key=lambda n: numbers[n])
    return [even[ranks.index(n)] for n in range(len(numbers))], False


def _band(points: list[tuple[float, Spread]], x: Axis, y: Axis) -> str:
    above = [(at, usd.p90) for at, usd in points]
    below = [(at, usd.p10) for at, usd in reversed(points)]
    return polyline([*above, *below], x, y)


def _whisker(at: float, usd: Spread, y: Axis) -> Whisker:
    top = round(100 - y.place(usd.p90), 3)
    return Whisker(at=at, top=top, height=round(y.place(usd.p90) - y.place(usd.p10), 3))


def _dots(at: float, value: Value, one: Answer, y: Axis) -> tuple[Dot, Dot]:
    """Return the mean, which rare dear jobs move, below the median, which they do not."""
    assert one.summary is not None
    mean, middle = (
        round(100 - y.place(usd), 3) for usd in (one.summary.mean_usd, one.summary.usd.p50)
    )
    words = f"{value.text}: {write_usd(one.summary.mean_usd)} on average"
    return (
        Dot(kind="evaluation", x=at, y=mean, title=words),
        Dot(kind="attempt_end", x=at, y=middle, title=_words(value, one)),
    )


def _miss(at: float, value: Value, one: Answer) -> Miss:
    assert one.summary is not None
    share = one.summary.num_missed / one.summary.num_jobs
    words = f"{value.text}: {one.summary.num_missed} of {one.summary.num_jobs} jobs are late"
    return Miss(at=at, height=round(100 * share, 3), label=write_share(share), title=words)


def _words(value: Value, one: Answer) -> str:
    found = one.summary
    if found is None:
        return f"{value.text} is not possible"
    return (
        f"{value.text}: half below {write_usd(found.usd.p50)} (p10 {write_usd(found.usd.p10)}, p90 "
        f"{write_usd(found.usd.p90)}), {write_share(found.num_missed / found.num_jobs)} late"
    )


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
