"""Translate what the packages below raise into errors with an exit code."""

from __future__ import annotations

from checkpoints.errors import (
    CheckpointError,
    Damaged,
    RecordInvalid,
    StoreRefused,
    StoreUnreachable,
)
from checkpoints.errors import (
    StoreError as StoreFailure,
)
from orchestrator.errors import (
    CloudRefused,
    OrchestratorError,
    RecordUnreadable,
    StoreError,
)


def explain(error: Exception) -> OrchestratorError | None:
    """Return the error as the user is to see it, None for one that nobody foresaw."""
    if isinstance(error, OrchestratorError):
        return error
    if not isinstance(error, CheckpointError):
        return None
    return _kind(error)(error.what, error.next_step)


def _kind(error: CheckpointError) -> type[OrchestratorError]:
    if isinstance(error, (StoreRefused, StoreUnreachable)) and "s3://" in error.what:
        return CloudRefused
    if isinstance(error, StoreFailure):
        return StoreError
    if isinstance(error, (RecordInvalid, Damaged)):
        return RecordUnreadable
    return OrchestratorError
