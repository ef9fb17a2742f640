"""Lay out a run's page; the templates hold markup and style, and decide nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.dashboard.content import build_page
from orchestrator.errors import MissingDependency
from orchestrator.view import RunView

if TYPE_CHECKING:
    from jinja2 import Environment


def render_page(view: RunView) -> str:
    """Return the run as one HTML document that fetches nothing and needs no script.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    return environment().get_template("page.html.jinja").render(page=build_page(view))


def environment() -> Environment:
    """Return what fills templates; raises MissingDependency without jinja2."""
    try:
        # An extra: everything else that the orchestrator does works without it.
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingDependency(
            "The dashboard needs jinja2, which is not installed.",
            "pip install -c constraints.txt -e '.[dashboard]'",
        ) from error
    return Environment(
        loader=PackageLoader("orchestrator.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
