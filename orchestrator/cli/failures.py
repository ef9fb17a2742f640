"""Translate what the packages below raise into errors with an exit code."""

from __future__ import annotations

import errno

from checkpoints.errors import (
    AddressInvalid,
    CheckpointError,
    Damaged,
    RecordInvalid,
    StoreRefused,
    StoreUnreachable,
)
from checkpoints.errors import (
    StoreError as StoreFailure,
)
from checkpoints.store import CLOUD_SCHEMES
from orchestrator.errors import (
    CloudRefused,
    OrchestratorError,
    RecordUnreadable,
    StoreError,
    UsageError,
)

# What a system answers about a name wherever a file of that name is looked for.
_NO_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)


def explain(error: Exception) -> OrchestratorError | None:
    """Return the error as the user is to see it, None for one that nobody foresaw."""
    if isinstance(error, OrchestratorError):
        return error
    if isinstance(error, OSError) and error.errno in _NO_NAMES:
        what = f"{str(error.filename)!r:.80} cannot be a file: {error.strerror}."
        return UsageError(what, "Correct the name.")
    if not isinstance(error, CheckpointError):
        return None
    return _kind(error)(error.what, error.next_step)


def _kind(error: CheckpointError) -> type[OrchestratorError]:
    is_cloud = any(f"{scheme}://" in error.what for scheme in CLOUD_SCHEMES)
    if isinstance(error, (StoreRefused, StoreUnreachable)) and is_cloud:
        return CloudRefused
    if isinstance(error, StoreFailure):
        return StoreError
    if isinstance(error, AddressInvalid):
        return UsageError
    if isinstance(error, (RecordInvalid, Damaged)):
        return RecordUnreadable
    return OrchestratorError
