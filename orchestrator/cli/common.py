"""Options that every command spells the same way, and how results and messages are printed."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.view import RunView

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LATE_CONTROL = re.compile(r"[\x7f-\x9f]")

Command = TypeVar("Command", bound=Callable[..., Any])


class Amount(click.FloatRange):
    """A number up to a bound. To a plain FloatRange NaN is within every bound."""

    def __init__(self, most: float, *, least: float = 0, is_above: bool = False) -> None:
        """Take numbers from `least` on, or those above it."""
        super().__init__(least, most, min_open=is_above)

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; raise click.BadParameter."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is no number.", param, ctx)
        return number


# Above them nobody means it, and what counts with it may overflow or never end.
MOST_USD, MOST_SECONDS, MOST_TOKENS = 1e9, 86_400, 10_000_000


def examples(*lines: str) -> str:
    """Return the end of a command's help: lines that can be typed as they stand."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def json_option(command: Command) -> Command:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def store_option(command: Command) -> Command:
    """Add --store."""
    return click.option(
        "--store",
        metavar="URL",
        help="Store of the run, as s3://bucket/runs; needed where this machine did not launch it.",
    )(command)


def yes_option(command: Command) -> Command:
    """Add --yes."""
    return click.option("--yes", is_flag=True, help="Do not ask.")(command)


def set_option(command: Command) -> Command:
    """Add --set."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY.PATH=VALUE",
        help="Override a key of the spec, as limits.budget_usd=80; may be repeated.",
    )(command)


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document to stdout."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    # json leaves these as they are, and to a terminal some of them are the beginning of a command.
    print(_LATE_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def check_page(path: Path) -> None:
    """Say before long work that a page could not be made or written after it.

    Raises:
        UsageError: there is no such folder.
        MissingDependency: jinja2 is not installed.
    """
    # jinja2 is an extra, and costs 70 ms.
    from orchestrator.dashboard.page import environment

    environment()
    if not path.absolute().parent.is_dir():
        raise UsageError(f"Cannot write {path}: there is no such folder.", "Choose another path.")


def write_page(path: Path, page: str) -> None:
    """Write an HTML page; raises UsageError if it cannot be written."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"Cannot write {path}: {error.strerror}.", "Choose another path."
        ) from error


def say(message: str) -> None:
    """Print a message for people to stderr."""
    click.echo(plain(message), err=True)


@contextmanager
def progress(what: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
    """Yield what takes the bytes done so far; a bar shows them where there is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console  # 60 ms, and only for people who wait
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=num_bytes)
        yield lambda done: bar.advance(task, done)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what spends or destroys; without a terminal only --yes goes on.

    Raises:
        click.UsageError: there is nobody to ask.
        click.Abort: the answer was no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask on: add --yes.")
    click.confirm(question, abort=True, err=True)


def plain(text: str) -> str:
    """Return text that moves no cursor and sets no colour, whatever a cloud or a trainer said."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def show_usd(view: RunView) -> str:
    """Write what a run has cost, and that it was simulated where it was."""
    return f"${view.parts.total:.2f}{' (simulated)' if view.record.simulated else ''}"
