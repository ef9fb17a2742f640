"""A run's status for a terminal: bars for what fills up, sparklines for what moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.cli.common import plain
from orchestrator.clock import show_duration
from orchestrator.standing import RunStateName, deadline_at, state_name
from orchestrator.view import RunView

_WIDTH = 40
_LEVELS = "▁▂▃▄▅▆▇█"
# From here on what is nearly used up is drawn in yellow.
_LATE = 0.8
# Steps that a sparkline shows: enough to see where it is going.
_RECENT_STEPS = 2_000
_COLOURS = {
    RunStateName.RUNNING: "green",
    RunStateName.SUCCEEDED: "green",
    RunStateName.FAILED: "red",
    RunStateName.UNKNOWN: "yellow",
    RunStateName.RECOVERING: "yellow",
    RunStateName.WAITING: "yellow",
}


def status_frame(view: RunView, lines: str) -> RenderableType:
    """Return the status as bars and sparklines, and below them as `lines` say it."""
    state = state_name(view)
    head = Text(view.record.run, "bold")
    head.append(f" {state.value}", _COLOURS.get(state, "cyan"))
    grid = Table.grid(padding=(0, 2))
    for name, drawn, words in _rows(view):
        grid.add_row(Text(name, "dim"), drawn, Text(words))
    return Group(head, grid, Text(), Text(plain(lines)))


def _rows(view: RunView) -> list[tuple[str, Text, str]]:
    record, limits = view.record, view.state.spec.limits
    share = view.step / record.num_steps
    rows = [("steps", _bar(share), f"{view.step:,} of {record.num_steps:,} ({share:.0%})")]
    spent = float(view.parts.total / limits.budget_usd)
    simulated = " simulated" if record.simulated else ""
    of_budget = f"${view.parts.total:.2f} of ${limits.budget_usd}{simulated}"
    rows.append(("budget", _bar(spent, warns=True), of_budget))
    due = deadline_at(view.state)
    if due is not None:
        until = view.state.ended_at or view.as_of
        whole, left = due - record.created_at, due - until
        words = f"{show_duration(left)} left" if left > timedelta() else "missed"
        rows.append(("deadline", _bar((until - record.created_at) / whole, warns=True), words))
    steps = [step for _, step in view.steps[-_RECENT_STEPS:]]
    if steps:
        rates = [step.num_tokens / step.seconds for step in steps if step.seconds > 0]
        losses = [step.loss for step in steps]
        rows.append(("loss", Text(sparkline(losses), "cyan"), f"{losses[-1]:.4f}"))
        if rates:
            rows.append(("tokens/s", Text(sparkline(rates), "cyan"), f"{rates[-1]:,.0f}"))
    return rows


def _bar(share: float, *, warns: bool = False) -> Text:
    filled = round(_WIDTH * min(1.0, max(0.0, share)))
    colour = "red" if warns and share >= 1 else "yellow" if warns and share >= _LATE else "green"
    bar = Text("█" * filled, colour)
    return bar.append("░" * (_WIDTH - filled), "dim")


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
    """Return values as one row of blocks; of more values than blocks, each block is a mean.

    What is no number (a loss that blew up) is left blank.
    """
    size = max(1, -(-len(values) // width))
    means = [
        sum(values[start : start + size]) / len(values[start : start + size])
        for start in range(0, len(values), size)
    ]
    finite = [mean for mean in means if math.isfinite(mean)]
    if not finite:
        return " " * len(means)
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0
    top = len(_LEVELS) - 1
    return "".join(
        _LEVELS[round(top * (mean - low) / span)] if math.isfinite(mean) else " " for mean in means
    )
