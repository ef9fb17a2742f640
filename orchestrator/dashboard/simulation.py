"""The page of a simulation: what to choose first, then costs, and a job of each kind as it went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.dashboard.formats import NOTHING, write_number, write_share, write_usd
from orchestrator.dashboard.page import render
from orchestrator.dashboard.simulated_costs import (
    CostCurve,
    Spreads,
    build_curves,
    build_spreads,
    label_of,
)
from orchestrator.dashboard.simulated_job import JobStory, build_story
from orchestrator.dashboard.tables import Column, Table
from orchestrator.simulate.study import replay_median
from orchestrator.simulate.what_if import Answer, Question, cheapest


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationPage:
    """Answers to one question, or to several that differ in a value."""

    title: str
    verdict: str
    facts: tuple[tuple[str, str], ...]
    table: Table
    curves: tuple[CostCurve, ...]
    costs: Spreads | None
    stories: tuple[JobStory, ...]


def render_simulation(name: str, question: Question, answers: Sequence[Answer]) -> str:
    """Return an HTML document that fetches nothing and needs no script.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    page = build_simulation(name, question, answers)
    return render("simulation.html.jinja", page=page, served=None)


def build_simulation(name: str, question: Question, answers: Sequence[Answer]) -> SimulationPage:
    """Return the page's content; answers without values compare policies."""
    is_varied = any(one.case.values for one in answers)
    best = cheapest(answers)
    told = [one for one in answers if one is best or not is_varied]
    return SimulationPage(
        title=name,
        verdict=_verdict(best),
        facts=_facts(question, answers),
        table=_table(answers, best),
        curves=build_curves(answers) if is_varied else (),
        costs=build_spreads(answers, has_optimum=not is_varied),
        stories=tuple(_story(one) for one in told if one.summary is not None),
    )


def _verdict(best: Answer | None) -> str:
    if best is None or best.summary is None:
        return "None of the values is possible."
    found = best.summary
    return (
        f"Least mean cost: {_name(best)}, {write_usd(found.mean_usd)} per job, "
        f"{found.cost_vs_optimal:.3f} times the least possible and "
        f"{write_share(found.cost_vs_on_demand)} of on demand; "
        f"{found.num_missed} of {found.num_jobs} jobs miss the deadline."
    )


def _name(one: Answer) -> str:
    return ", ".join(part for part in (label_of(one.case.values), one.policy) if part)


def _facts(question: Question, answers: Sequence[Answer]) -> tuple[tuple[str, str], ...]:
    terms = question.terms
    varied = {value.key.value for one in answers for value in one.case.values}
    facts = {
        "gpu": ("Market", Path(question.record).name),
        "regions": ("Zones", ", ".join(trace.zone for trace in question.traces)),
        "nodes": ("Nodes", str(question.num_nodes)),
        "work": ("Work", f"{terms.work:g} h"),
        "deadline": ("Deadline", f"{terms.deadline:g} h"),
        "restart": ("Start", f"{write_number(terms.restart * 60)} min"),
        "state": ("State", f"{terms.state_gb:g} GB"),
        "interval": ("Lost with a node, at most", f"{write_number(terms.lost_work * 60)} min"),
        "starts": ("Jobs", str(max(len(one.case.starts) for one in answers))),
        "": ("Seen, billed", f"{terms.observe.value}, {terms.billing.value}"),
    }
    return tuple(fact for key, fact in facts.items() if key not in varied)


def _table(answers: Sequence[Answer], best: Answer | None) -> Table:
    names = (
        "USD mean",
        "p10",
        "p50",
        "p90",
        "Hours p50",
        "p90",
        "Late",
        "x optimal",
        "x on demand",
    )
    return Table(
        caption="Cost per job in US dollars, hours to the end, and jobs that miss the deadline",
        columns=(
            Column(name="Asked"),
            *(Column(name=name, is_number=True) for name in names),
            Column(name="Remark"),
        ),
        rows=tuple(_cells(one, is_best=one is best) for one in answers),
        empty="Nothing was simulated.",
        note="Ratios are means over jobs: to the least possible, and to on demand all the way.",
    )


def _cells(one: Answer, *, is_best: bool) -> tuple[str, ...]:
    found = one.summary
    if found is None:
        return (_name(one), *[NOTHING] * 9, f"not possible: {one.case.why_not}")
    return (
        _name(one),
        f"{found.mean_usd:,.2f}",
        *(f"{usd:,.2f}" for usd in found.usd),
        f"{found.hours.p50:.1f}",
        f"{found.hours.p90:.1f}",
        write_share(found.num_missed / found.num_jobs),
        f"{found.cost_vs_optimal:.3f}",
        f"{found.cost_vs_on_demand:.3f}",
        "least mean cost" if is_best else "",
    )


def _story(one: Answer) -> JobStory:
    market, terms = one.case.market, one.case.question.terms
    assert market is not None
    start, ended = replay_median(market, one.outcomes, terms, one.policy)
    return build_story(_name(one), market, start, terms, ended)
