"""The course of `orchestrate eval`: answers, what judging will cost, verdicts, and who is told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from checkpoints.store import ObjectStore
from orchestrator.cli.common import confirm, say
from orchestrator.clock import SystemClock
from orchestrator.errors import UsageError
from orchestrator.evaluation.answers import Answers
from orchestrator.evaluation.endpoint import Endpoint, Request
from orchestrator.evaluation.evaluation import collect, judge, requests, unjudged
from orchestrator.evaluation.keeping import keep, name_evaluation, open_folder
from orchestrator.evaluation.meter import Meter, Price
from orchestrator.evaluation.questions import Question
from orchestrator.evaluation.report import Report, report_key
from orchestrator.evaluation.sides import Found, Role, answering, asking, find_side
from orchestrator.evaluation.telling import tell_run
from orchestrator.evaluation.wording import describe_outlook


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says of how to ask."""

    max_tokens: int
    parallel: int
    timeout_s: float | None
    """None: as long as replies usually take, see `sides`."""
    price: Price | None
    budget_usd: Decimal | None
    is_agreed: bool
    is_fresh: bool
    output: Path | None
    store: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Who takes part."""

    model: Found
    baseline: Found | None
    judge: Found | None


def find_sides(model: str, baseline: str | None, judge: str | None, options: Options) -> Sides:
    """Return the models that the user has named; raises what `find_side` raises."""

    def find(text: str, role: Role) -> Found:
        return find_side(text, role, options.store, options.timeout_s)

    return Sides(
        model=find(model, Role.MODEL),
        baseline=None if baseline is None else find(baseline, Role.BASELINE),
        judge=None if judge is None else find(judge, Role.JUDGE),
    )


def evaluate(
    sides: Sides, questions: Sequence[Question], source: str, options: Options
) -> tuple[Report, Endpoint | None]:
    """Evaluate and keep the report; return it with the judge's endpoint, which may be down.

    Raises what asking raises, and click's errors where the user does not agree to the cost.
    """
    folder = open_folder(sides.model, options.output, options.store)
    ours = _answers(sides.model, folder, questions, options)
    theirs = None
    if sides.baseline is not None:
        theirs = _answers(sides.baseline, folder, questions, options)
    everyone = (sides.model, sides.baseline, sides.judge)
    items, judging, endpoint = unjudged(questions, ours, theirs), None, None
    if sides.judge is not None:
        judging_by = asking(sides.judge, folder, options.timeout_s, say, is_fresh=options.is_fresh)
        with judging_by as asker:
            meter = Meter(asker, options.price, options.budget_usd)
            _agree(meter, sides.judge, requests(questions, ours, theirs), options)
            with _progress("Verdicts", len(questions)) as advance:
                items = judge(
                    meter.ask, questions, ours, theirs, parallel=options.parallel, advance=advance
                )
        judging, endpoint = meter.spent(), asker.endpoint
    clock = SystemClock()
    report = keep(
        folder,
        name_evaluation(everyone, questions, options.max_tokens),
        items,
        sides=everyone,
        questions=source,
        judging=judging,
        at=clock.now(),
    )
    say(f"All of it is kept in {folder.url}/{report_key(report.evaluation)}")
    if report.judge is not None and report.model.run is not None and options.output is None:
        for line in tell_run(folder, report, clock):
            say(line)
    return report, endpoint


def _answers(
    found: Found, folder: ObjectStore, questions: Sequence[Question], options: Options
) -> dict[str, Answers | None]:
    how = answering(
        found,
        folder,
        max_tokens=options.max_tokens,
        timeout_s=options.timeout_s,
        say=say,
        is_fresh=options.is_fresh,
    )
    with how as ask, _progress(f"Answers of {found.side.name}", len(questions)) as advance:
        answers = collect(ask, questions, parallel=options.parallel, advance=advance)
    lacking = sum(one is None for one in answers.values())
    if lacking == len(questions):
        raise UsageError(
            f"{found.side.name} answered none of the {len(questions)} questions.",
            f"Look at {found.side.source}; a small model may need a lower --max-tokens.",
        )
    cut = sum(one is not None and one.is_cut for one in answers.values())
    if cut:
        say(f"{cut} of its answers are cut off at {options.max_tokens} tokens; see --max-tokens.")
    if lacking:
        say(f"{found.side.name} gave no answer to {lacking} of {len(questions)} questions.")
    return answers


def _agree(meter: Meter, judge: Found, asked: Iterator[Request], options: Options) -> None:
    """Say what judging will cost, and ask where it may cost something."""
    outlook = meter.outlook(asked)
    say(describe_outlook(outlook))
    # A price was given: somebody pays, also behind a proxy on this machine.
    if (judge.costs or options.price is not None) and outlook.requests > outlook.known:
        confirm(f"Ask {judge.side.source}?", yes=options.is_agreed)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Yield what to call after each question; a bar shows it, or a line every tenth."""
    if sys.stderr.isatty():
        from rich.console import Console  # 60 ms, and only for people who wait
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)
        return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done == total or done % max(1, total // 10) == 0:
            say(f"{what}: {done}/{total}")

    yield advance
