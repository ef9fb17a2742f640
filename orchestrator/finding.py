"""What a check of `orchestrate doctor` found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from checkpoints.errors import CheckpointError
from orchestrator.errors import OrchestratorError


class Verdict(str, Enum):
    """What a check found."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check; `next_step` where there is something to do."""

    check: str
    verdict: Verdict
    what: str
    next_step: str | None = None
    error: CheckpointError | OrchestratorError | None = None
    """What a launch would have ended with."""


def ok(check: str, what: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding(check=check, verdict=Verdict.OK, what=what)


def warning(check: str, what: str, next_step: str | None = None) -> Finding:
    """Return a finding that a launch survives."""
    return Finding(check=check, verdict=Verdict.WARNING, what=what, next_step=next_step)


def failed(check: str, error: CheckpointError | OrchestratorError) -> Finding:
    """Return what a launch would end with."""
    return Finding(
        check=check,
        verdict=Verdict.FAILED,
        what=error.what,
        next_step=error.next_step,
        error=error,
    )
