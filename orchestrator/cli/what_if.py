"""`orchestrate simulate --what-if`: read what is varied, ask for each value, print the answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.simulating import (
    bar,
    read_gigabytes,
    read_hours,
    show_progress,
    terms_document,
)

if TYPE_CHECKING:
    from orchestrator.simulate.what_if import Answer, Question, Value

_KEYS = (
    *("deadline", "work", "restart", "state", "nodes"),
    *("interval", "regions", "zones", "gpu"),
)
_MOST_KEYS, _MOST_VALUES = 2, 24
_BAR_WIDTH = 6
# Whoever reads a pipe wants a row in one line.
_PIPED_WIDTH = 200
# Another kind of node, or another number of them, is another amount of work.
_TAKES_WORK = ("gpu", "nodes")
_WORK = ":work="


@dataclass(frozen=True, slots=True, kw_only=True)
class Varied:
    """A key and its values as they were written."""

    key: str
    texts: tuple[str, ...]

    @property
    def option(self) -> str:
        """How an error calls it."""
        return f"--what-if {self.key}"


def read_varied(options: Sequence[str]) -> list[Varied]:
    """Parse KEY=V1,V2; raises UsageError for an unknown key, no values, or too many keys."""
    found = [_read_one(option) for option in options]
    keys = [one.key for one in found]
    for key in keys:
        if keys.count(key) > 1:
            raise click.UsageError(f"--what-if {key} is there twice: give all values at once.")
    if len(keys) > _MOST_KEYS:
        raise click.UsageError(f"--what-if {', '.join(keys)}: at most {_MOST_KEYS} keys at once.")
    sets_work = [
        one.key for one in found if one.key == "work" or any(_WORK in text for text in one.texts)
    ]
    if len(sets_work) > 1:
        raise click.UsageError(f"--what-if {' and '.join(sets_work)} both set the work.")
    return found


def first_text(varied: Sequence[Varied], key: str) -> str | None:
    """Return the first value of what every case sets, for no option needs to say it then."""
    for one in varied:
        if one.key == key:
            return one.texts[0]
        works = [text.partition(_WORK)[2] for text in one.texts]
        if key == "work" and all(works):
            return works[0]
    return None


def read_choices(varied: Sequence[Varied], folder: Path | None) -> list[list[Value]]:
    """Return what the texts mean; raises UsageError, or InputError for traces that are none."""
    return [[_value(one, text, folder) for text in one.texts] for one in varied]


def ask(
    base: Question,
    choices: Sequence[Sequence[Value]],
    policies: Sequence[str],
    starts: int,
    seed: int,
) -> list[Answer]:
    """Return the answers for each combination of values and each policy, in order."""
    from orchestrator.simulate.study import study
    from orchestrator.simulate.what_if import answer, make_cases

    cases = make_cases(base, choices, starts, seed)
    answers: list[Answer] = []
    for number, case in enumerate(cases, 1):
        outcomes = []
        if case.market is not None:
            words = f"{_label(case.values)} ({number} of {len(cases)})"
            running = study(case.market, case.starts, case.question.terms, policies)
            outcomes = list(show_progress(running, len(case.starts), words))
        answers += answer(case, outcomes, policies)
    return answers


def what_if_document(answers: Sequence[Answer], varied: Sequence[Varied]) -> dict[str, Any]:
    """Return the answers as --json has them."""
    from orchestrator.simulate.what_if import cheapest

    best = cheapest(answers)
    return {
        "keys": [one.key for one in varied],
        "rows": [_row(one, is_cheapest=one is best) for one in answers],
    }


def print_answers(answers: Sequence[Answer], varied: Sequence[Varied]) -> None:
    """Print a table with a row for each answer, and what it does not show below it."""
    from rich.console import Console  # 60 ms
    from rich.table import Table

    from orchestrator.simulate.what_if import cheapest

    best = cheapest(answers)
    has_policies = len({one.policy for one in answers}) > 1
    table = Table(box=None, padding=(0, 1, 0, 0))
    for one in varied:
        table.add_column(one.key, overflow="fold")
    for name in (*(["policy"] if has_policies else []), "cost"):
        table.add_column(name, no_wrap=True)
    for name in ("USD", "p10/p50/p90", "h p50/p90", "missed", "x opt.", "x o.d."):
        table.add_column(name, justify="right", no_wrap=True)
    most = max((one.summary.mean_usd for one in answers if one.summary), default=1.0)
    for each in answers:
        names = [value.text for value in each.case.values] + [each.policy] * has_policies
        table.add_row(*names, *_cells(each, most), style="bold" if each is best else None)
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)
    for line in _notes(answers, best):
        click.echo(line)


def _read_one(option: str) -> Varied:
    from orchestrator.spec import suggest

    key, equals, rest = option.partition("=")
    if key not in _KEYS:
        hint = suggest(key, _KEYS) or f": it may be {', '.join(_KEYS)}"
        raise click.UsageError(f"--what-if {option}: {key or 'nothing'} cannot be varied{hint}")
    texts = tuple(text.strip() for text in rest.split(","))
    if not equals or not all(texts):
        raise click.UsageError(f"--what-if {option}: write {key}=VALUE,VALUE with no value empty.")
    if len(texts) > _MOST_VALUES:
        raise click.UsageError(f"--what-if {key}: at most {_MOST_VALUES} values at once.")
    if len(set(texts)) < len(texts):
        raise click.UsageError(f"--what-if {option} has a value twice.")
    return Varied(key=key, texts=texts)


def _value(varied: Varied, text: str, folder: Path | None) -> Value:
    from orchestrator.simulate.what_if import Key, Value

    plain, colon, work = text.partition(_WORK)
    if colon and varied.key not in _TAKES_WORK:
        raise click.UsageError(
            f"{varied.option}={text}: {_WORK} goes with {' and '.join(_TAKES_WORK)} only."
        )
    number, change = _meaning(varied, plain, folder)
    if colon:
        change = _then_work(change, read_hours(f"{varied.option}={plain}{_WORK}", work))
    return Value(key=Key(varied.key), text=text, number=number, change=change)


def _meaning(
    varied: Varied, text: str, folder: Path | None
) -> tuple[float | None, Callable[[Question], Question]]:
    """Return where a value lies on an axis, and what it changes."""
    from orchestrator.simulate.what_if import keep_regions, keep_zones, set_interval

    match varied.key:
        case "deadline" | "work" | "restart":
            hours = read_hours(varied.option, text)
            return hours, _set_terms(varied.key, hours)
        case "interval":
            hours = read_hours(varied.option, text)
            return hours, lambda question: set_interval(question, hours)
        case "state":
            size = read_gigabytes(varied.option, text)
            return size, _set_terms("state_gb", size)
        case "nodes":
            if folder is None:
                raise click.UsageError("--what-if nodes needs recorded --traces.")
            count = _count(varied, text)
            return count, lambda question: replace(question, num_nodes=count)
        case "gpu":
            return None, _set_traces(text, folder)
        case _:
            wanted = _count(varied, text) if text.isdigit() else tuple(text.split("+"))
            keep = keep_regions if varied.key == "regions" else keep_zones
            number = wanted if isinstance(wanted, int) else None
            return number, lambda question: keep(question, wanted)


def _count(varied: Varied, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:9]) >= 1 and len(text) < 6):
        raise click.UsageError(f"{varied.option}={text}: write a whole number from 1 on.")
    return int(text)


def _set_terms(name: str, amount: float) -> Callable[[Question], Question]:
    changes: dict[str, Any] = {name: amount}
    return lambda question: replace(question, terms=replace(question.terms, **changes))


def _then_work(
    change: Callable[[Question], Question], hours: float
) -> Callable[[Question], Question]:
    def both(question: Question) -> Question:
        return _set_terms("work", hours)(change(question))

    return both


def _set_traces(text: str, folder: Path | None) -> Callable[[Question], Question]:
    """Read the traces of another kind of node: a folder, or one beside that of --traces."""
    from orchestrator.simulate.traces import read_traces
    from orchestrator.spec import suggest

    beside = Path() if folder is None else folder.resolve().parent
    path = next((one for one in (Path(text), beside / text) if one.is_dir()), None)
    if path is None:
        known = sorted(one.name for one in beside.iterdir() if one.is_dir())
        raise click.UsageError(f"--what-if gpu={text}: no such folder{suggest(text, known) or '.'}")
    traces = tuple(read_traces(path))
    return lambda question: replace(question, record=str(path), traces=traces)


def _label(values: Sequence[Value]) -> str:
    return " ".join(f"{value.key.value}={value.text}" for value in values)


def _row(one: Answer, *, is_cheapest: bool) -> dict[str, Any]:
    found = one.summary
    return {
        "values": {value.key.value: value.text for value in one.case.values},
        "policy": one.policy,
        "is_cheapest": is_cheapest,
        "infeasible": one.case.why_not,
        "traces": one.case.question.record,
        "zones": [trace.zone for trace in one.case.question.traces],
        "nodes": one.case.question.num_nodes,
        "terms": terms_document(one.case.question.terms),
        "starts": list(one.case.starts),
        "jobs": found and found.num_jobs,
        "missed_deadlines": found and found.num_missed,
        "missed_share": found and found.num_missed / found.num_jobs,
        "optimal_mean_usd": one.optimal_usd,
        "mean_usd": found and found.mean_usd,
        "usd": found and found.usd._asdict(),
        "hours": found and found.hours._asdict(),
        "mean_cost_vs_optimal": found and found.cost_vs_optimal,
        "mean_cost_vs_on_demand": found and found.cost_vs_on_demand,
    }


def _cells(one: Answer, most: float) -> list[str]:
    found = one.summary
    if found is None:
        return ["", "", "not possible"]
    usd, hours = found.usd, found.hours
    digits = 0 if usd.p90 >= 1000 else 1 if usd.p90 >= 10 else 2
    return [
        bar(found.mean_usd, most, _BAR_WIDTH),
        f"{found.mean_usd:,.2f}",
        "/".join(f"{amount:.{digits}f}" for amount in usd),
        f"{hours.p50:.1f}/{hours.p90:.1f}",
        f"{found.num_missed / found.num_jobs:.0%}",
        f"{found.cost_vs_optimal:.3f}",
        f"{found.cost_vs_on_demand:.3f}",
    ]


def _notes(answers: Sequence[Answer], best: Answer | None) -> list[str]:
    """Return the least mean cost, what numbers of places stand for, and what cannot be and why."""
    lines = []
    if best is not None and best.summary is not None:
        where = _label(best.case.values)
        lines.append(f"Least mean cost: {where} ({best.policy}), ${best.summary.mean_usd:,.2f}.")
    seen = set()
    for one in answers:
        label = _label(one.case.values)
        if label in seen:
            continue
        seen.add(label)
        if one.case.why_not:
            lines.append(f"{label} is not possible: {one.case.why_not}")
        elif any(v.key.value in ("regions", "zones") and v.number for v in one.case.values):
            lines.append(f"{label}: {', '.join(t.zone for t in one.case.question.traces)}")
    return lines
