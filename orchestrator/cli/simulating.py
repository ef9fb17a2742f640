"""What `orchestrate simulate` and its what-ifs share: reading amounts, progress, writing terms."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from orchestrator.simulate.terms import Terms

One = TypeVar("One")


def read_hours(option: str, text: str, least: float = 1) -> float:
    """Parse a time; raises UsageError for one that is none, or shorter than `least` seconds."""
    from orchestrator.spec import parse_duration

    try:
        found = timedelta() if re.fullmatch(r"0(s|min|h)?", text) else parse_duration(text)
    except (ValueError, OverflowError) as error:
        raise click.UsageError(f"{option} {text}: {error}.") from error
    if found.total_seconds() < least:
        raise click.UsageError(f"{option} {text} is too short.")
    return in_hours(found)


def in_hours(time: timedelta) -> float:
    """Return a time as the simulator counts it."""
    return time / timedelta(hours=1)


def read_gigabytes(option: str, text: str) -> float:
    """Parse a size; raises UsageError for one that is none."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?(GB|TB|MB)", text)
    if found is None:
        raise click.UsageError(f"{option} {text} is no size: write 156GB, 1.5TB or 300MB.")
    return float(found[1]) * {"MB": 1e-3, "GB": 1.0, "TB": 1e3}[found[2]]


def show_progress(ones: Iterable[One], total: int, words: str) -> Iterator[One]:
    """Yield what there is, with a bar on stderr where there is a terminal."""
    if not sys.stderr.isatty():
        yield from ones
        return
    from rich.console import Console  # 60 ms, and only for people who wait
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(ones, description=words, total=total, console=console, transient=True)


def terms_document(terms: Terms) -> dict[str, Any]:
    """Return terms as --json has them."""
    return {
        "work_hours": terms.work,
        "deadline_hours": terms.deadline,
        "restart_hours": terms.restart,
        "state_gb": terms.state_gb,
        "lost_work_hours": terms.lost_work,
        "failed_launch_hours": terms.failed_launch,
        "observe": terms.observe.value,
        "billing": terms.billing.value,
    }


def bar(usd: float, most: float, width: int) -> str:
    """Return a bar whose length is an amount's share of the largest one."""
    return "\u2588" * max(1, round(width * usd / most))
