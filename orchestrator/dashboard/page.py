"""Lay out a run's page; the templates hold markup and style, and decide nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from orchestrator.dashboard.content import build_page
from orchestrator.dashboard.evaluations import build_evaluation
from orchestrator.errors import MissingDependency
from orchestrator.evaluation.report import Report
from orchestrator.view import RunView

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True, slots=True)
class Served:
    """Where a page is served, so that it can renew itself and link to its tables."""

    address: str
    problem: str | None = None
    """Why what it shows is as it was seen last."""


def render_page(view: RunView, served: Served | None = None) -> str:
    """Return the run as an HTML document; unless it is served it fetches nothing and has no script.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    return render("page.html.jinja", page=build_page(view), served=served)


def render_evaluation(report: Report, served: Served | None = None, run_address: str = "") -> str:
    """Return an evaluation as an HTML document; raises MissingDependency without jinja2."""
    return render(
        "evaluation.html.jinja",
        page=build_evaluation(report),
        served=served,
        run=report.model.run,
        run_address=run_address,
    )


def render(template: str, **values: object) -> str:
    """Return a template, filled; raises MissingDependency without jinja2."""
    return environment().get_template(template).render(**values)


@cache
def environment() -> Environment:
    """Return what fills templates; raises MissingDependency without jinja2."""
    try:
        # An extra: everything else that the orchestrator does works without it.
        from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingDependency(
            "The dashboard needs jinja2, which is not installed.",
            "pip install -c constraints.txt -e '.[dashboard]'",
        ) from error
    return Environment(
        loader=ChoiceLoader(
            [PackageLoader("orchestrator.dashboard", folder) for folder in ("templates", "static")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
