"""What the nodes' reports amount to: torchrun turns every exit status into 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.attempts import EndReason
from train.spool import Outcome, OutcomeKind


class NodeReport(BaseModel):
    """How one node's part of an attempt ended, as its agent saw it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["report"] = "report"
    node: int
    outcomes: tuple[Outcome | None, ...] = ()
    """One per rank of the node, None where a rank left none."""
    leaving: EndReason | None = None
    """Why the trainer was asked to leave, or was not started."""
    is_hung: bool = False
    """It gave no sign of life and was killed."""
    error: str | None = None
    """Why it was not started."""


def judge(reports: Sequence[NodeReport], lost: str | None) -> tuple[EndReason, str | None]:
    """Return how the attempt ended and, for a failure, why.

    `lost` says which node is gone without a report. Its peers' ranks then fail, too, of broken
    connections: that is the cloud's doing and no failure of the training.
    """
    ordered = sorted(reports, key=lambda report: report.node)
    outcomes = [outcome for report in ordered for outcome in report.outcomes]
    kinds = {None if outcome is None else outcome.outcome for outcome in outcomes}
    if OutcomeKind.FENCED in kinds:
        return EndReason.FENCED, "a later attempt owns the run"
    # A rank is done only after all have seen the last commit: losing a node then costs nothing.
    if kinds == {OutcomeKind.DONE} or (lost is not None and OutcomeKind.DONE in kinds):
        return EndReason.SUCCEEDED, None
    if lost is None and any(report.is_hung for report in ordered):
        return EndReason.HANG, "no progress"
    for report in ordered:
        if report.leaving is not None:
            return report.leaving, report.error
    if lost is not None:
        return EndReason.PREEMPTED, lost
    return _failure(outcomes)


def _failure(outcomes: Sequence[Outcome | None]) -> tuple[EndReason, str | None]:
    broken = (OutcomeKind.FAILED, OutcomeKind.CUT_OFF)
    ended = [one for one in outcomes if one is not None and one.outcome in broken]
    if ended:
        # The first one knows why; those after it complain of the connection that it took.
        first = min(ended, key=lambda outcome: outcome.at)
        is_cut_off = first.outcome is OutcomeKind.CUT_OFF
        reason = EndReason.PREEMPTED if is_cut_off else EndReason.TRAINING_FAILED
        return reason, first.error
    silent = [rank for rank, outcome in enumerate(outcomes) if outcome is None]
    if silent:
        return EndReason.TRAINING_FAILED, f"rank {silent[0]} died without a word"
    # Saved, on a notice that the trainer saw before its agent looked again.
    return EndReason.PREEMPTED, None
