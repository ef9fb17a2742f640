"""What the ranks' outcomes amount to: torchrun turns every exit status into 1."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.attempts import AgentExit
from train.spool import Outcome, OutcomeKind


def judge(outcomes: Sequence[Outcome | None], leaving: int | None) -> tuple[int, str | None]:
    """Return the agent's exit status and, for a failure, why.

    `outcomes` has one entry per rank, None where a rank left none; `leaving` is the status to end
    with when the trainer was asked to leave.
    """
    kinds = {None if outcome is None else outcome.outcome for outcome in outcomes}
    if OutcomeKind.FENCED in kinds:
        return AgentExit.FENCED, "a later attempt owns the run"
    if kinds == {OutcomeKind.DONE}:
        return AgentExit.DONE, None
    if leaving is not None:
        return leaving, None
    failed = [outcome for outcome in outcomes if outcome is not None and outcome.error]
    if failed:
        # The first one knows why; those after it complain of the connection that it took.
        return AgentExit.FAILED, min(failed, key=lambda outcome: outcome.at).error
    silent = [rank for rank, outcome in enumerate(outcomes) if outcome is None]
    return AgentExit.FAILED, f"rank {silent[0]} died without a word" if silent else None
