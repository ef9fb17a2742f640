"""Runs side by side: what each cost, took and came to, per step and per token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Document = dict[str, Any]


def _usd(amount: float | None) -> str | None:
    return None if amount is None else f"${amount:,.2f}"


def _share(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"


def _saving(share: float | None) -> str | None:
    return f"{-share:.0%} dearer" if share is not None and share < 0 else _share(share)


# What is compared, and how it reads; of `cost RUN --json`, `status RUN --json`.
_MEASURES: tuple[tuple[str, Callable[[Document, Document], str | None]], ...] = (
    ("State", lambda cost, status: cost["state"]),
    ("Simulated", lambda cost, status: "yes" if cost["simulated"] else "no"),
    ("Steps", lambda cost, status: f"{status['step']:,} of {status['num_steps']:,}"),
    ("Total", lambda cost, status: _usd(cost["total_usd"])),
    ("Per 1,000 steps", lambda cost, status: _usd(cost["usd_per_thousand_steps"])),
    ("Per million tokens", lambda cost, status: _usd(cost["usd_per_million_tokens"])),
    ("Saved against on demand", lambda cost, status: _saving(cost["savings_fraction"])),
    ("Market hours", lambda cost, status: f"{cost['market_hours']:,.2f}"),
    ("Goodput of wall time", lambda cost, status: _share(cost["goodput"]["wall"])),
    ("Goodput of billed time", lambda cost, status: _share(cost["goodput"]["billed"])),
    ("Attempts", lambda cost, status: str(len(cost["attempts"]))),
    ("Preemptions", lambda cost, status: str(status["num_preemptions"])),
    ("Lost work", lambda cost, status: _usd(cost["compute_by_bucket"]["lost_work"])),
    ("Start-up", lambda cost, status: _usd(cost["compute_by_bucket"]["startup"])),
    ("Last loss", lambda cost, status: _loss(status)),
)


def compare(documents: Sequence[tuple[Document, Document]]) -> list[tuple[str, list[str | None]]]:
    """Return each measure with its value for each run, given as (cost, status) documents."""
    return [
        (name, [write(cost, status) for cost, status in documents]) for name, write in _MEASURES
    ]


def _loss(status: Document) -> str | None:
    return None if status["loss"] is None else f"{status['loss']:.4f}"
