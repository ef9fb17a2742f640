"""Loss over step across preemptions; what line charts are made of."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.dashboard.charts import (
    Axis,
    make_axis,
    padded_range,
    polyline,
    stagger,
    thin,
)
from orchestrator.dashboard.formats import (
    write_number,
    write_words,
)
from orchestrator.dashboard.sources import LaunchSummary, Sources
from train.spool import Step

_NUM_X_TICKS, _NUM_Y_TICKS = 6, 6
# A label such as "12→13" takes this much of the narrowest plot.
_LABEL_GAP = 12.0
_LABEL_LEVELS = 3
# More dots than this would hide the line.
_MOST_DOTS = 300
# From here on marks overlap even in the widest plot, and are drawn smaller.
_MANY_DOTS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point with its tooltip; `y` counts from the top."""

    kind: str
    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line through a plot of 100 by 100."""

    kind: str
    points: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A vertical line with a label above the plot, on one of several levels (None: no room)."""

    at: float
    label: str
    level: int | None
    title: str
    band_start: float
    """The steps from here to the line were trained again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegendItem:
    """A kind of line or dot, and what it means."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Everything that a line chart draws."""

    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    dots: tuple[Dot, ...]
    rules: tuple[Rule, ...]
    legend: tuple[LegendItem, ...]
    summary: str
    note: str


def build_loss(sources: Sources) -> Plot | None:
    """Return the loss curve; None before the first step."""
    view = sources.view
    latest = view.latest
    if not latest:
        return None
    replaced = [(attempt, step) for attempt, step in view.steps if latest[step.step] is not step]
    final = [(float(number), latest[number].loss) for number in sorted(latest)]
    evaluations = [(float(one.step), one.loss) for one in view.evaluations]
    everything = [*final, *evaluations, *((float(one.step), one.loss) for _, one in replaced)]
    x = make_axis("optimizer step", 0, view.record.num_steps, _NUM_X_TICKS, write_number)
    low, high = padded_range([loss for _, loss in everything])
    y = make_axis("loss, mean per trained token", low, high, _NUM_Y_TICKS, write_number)
    shown = _sample([one for one in replaced if one[1].loss != latest[one[1].step].loss])
    shown += _sample([one for one in replaced if one[1].loss == latest[one[1].step].loss])
    mark = "replayed_small" if len(shown) > _MANY_DOTS else "replayed"
    dots = [
        draw_dot("final", x, y, point, f"step {point[0]:g}: loss {point[1]:.6g}")
        for point in (final if len(final) <= _MOST_DOTS else [])
    ]
    dots += [
        draw_dot(
            mark,
            x,
            y,
            (float(one.step), one.loss),
            f"step {one.step}, attempt {attempt}: loss {one.loss:.6g}, trained again later",
        )
        for attempt, one in shown
    ]
    dots += [
        draw_dot(
            "evaluation", x, y, point, f"evaluation after step {point[0]:g}: loss {point[1]:.6g}"
        )
        for point in evaluations
    ]
    rules = _rules(sources, x)
    return Plot(
        x=x,
        y=y,
        lines=(Line(kind="final", points=polyline(thin(final), x, y), title="loss"),),
        dots=tuple(dots),
        rules=rules,
        legend=_loss_legend(has_replays=bool(replaced), evaluations=evaluations, rules=rules),
        summary=f"Loss over step: {final[0][1]:.4f} at step {final[0][0]:g}, {final[-1][1]:.4f} at "
        f"step {final[-1][0]:g}; {len(rules)} interruptions, {len(replaced)} values replayed.",
        note="Where an earlier attempt's mark lies on the line, the replay gave the same value.",
    )


def _sample(replaced: list[tuple[int, Step]]) -> list[tuple[int, Step]]:
    return replaced[:: -(-len(replaced) // _MOST_DOTS) or 1]


def draw_dot(kind: str, x: Axis, y: Axis, point: tuple[float, float], title: str) -> Dot:
    """Return a point in place."""
    return Dot(kind=kind, x=x.place(point[0]), y=round(100 - y.place(point[1]), 3), title=title)


def _rules(sources: Sources, x: Axis) -> tuple[Rule, ...]:
    """Return a line where each attempt ended before the run's last step, in order of steps."""
    ended = sorted(
        (
            (one.last_step, one)
            for one in sources.launches
            if one.last_step is not None
            and one.launch.reason is not None
            and one.last_step < sources.view.record.num_steps
        ),
        key=lambda pair: (pair[0], pair[1].launch.attempt or 0),
    )
    places = [x.place(step) for step, _ in ended]
    levels = stagger(places, _LABEL_GAP, _LABEL_LEVELS)
    return tuple(
        _rule(x, one, step, level) for (step, one), level in zip(ended, levels, strict=True)
    )


def _rule(x: Axis, summary: LaunchSummary, step: int, level: int | None) -> Rule:
    attempt, reason = summary.launch.attempt or 0, summary.launch.reason
    following, resumed = summary.next_attempt, summary.next_step
    words = write_words(reason.value) if reason is not None else "ended"
    then = "no attempt since" if resumed is None else f"attempt {following} from step {resumed}"
    return Rule(
        at=x.place(step),
        label=f"{attempt}" if resumed is None else f"{attempt}→{following}",
        level=level,
        title=f"attempt {attempt} {words} after step {step}; {then}",
        band_start=x.place(step if resumed is None else min(step, resumed)),
    )


def _loss_legend(
    *, has_replays: bool, evaluations: list[tuple[float, float]], rules: tuple[Rule, ...]
) -> tuple[LegendItem, ...]:
    items = [LegendItem(kind="final", name="loss in the final model's history")]
    if has_replays:
        items.append(LegendItem(kind="replayed", name="earlier attempt, trained again"))
    if evaluations:
        items.append(LegendItem(kind="evaluation", name="evaluation loss"))
    if rules:
        items.append(
            LegendItem(kind="rule", name="attempt ended (from→to); shaded: steps replayed")
        )
    return tuple(items)
