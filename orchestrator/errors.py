"""Every error a user can meet, with its exit code: one line what happened, one line what to do.

OrchestratorError                 1  a bug of ours, or what nobody foresaw
├── UsageError                    2  the command line or the spec is wrong
│   ├── SpecError                 2  a key or value of the spec
│   ├── InputError                2  data or model files
│   ├── RunConflict               2  the store holds another run of that name
│   ├── UnknownRun                2  no such run
│   ├── StoreError                2  the store cannot be read or written (3 where a cloud refused)
│   ├── MissingDependency         2  an extra is not installed
│   ├── ModelNotServed            2  a model's server does not start
│   ├── ServerUnusable            2  a model's server cannot be reached, or refuses
│   └── RecordUnreadable          2  the run folder holds what this version cannot read
├── CloudRefused                  3  credentials, permissions, quota
├── GaveUp                        4  time, retries or budget used up; resumable
├── TrainingFailed                5  the training program failed
└── Detached                    130  the user stopped watching; the run goes on
"""

from __future__ import annotations

from typing import ClassVar


class OrchestratorError(Exception):
    """An error that is shown to the user as two lines, without a traceback."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, next_step: str) -> None:
        super().__init__(what)
        self.what = what
        self.next_step = next_step


class UsageError(OrchestratorError):
    """The command line or the spec cannot be acted on."""

    exit_code = 2


class SpecError(UsageError):
    """A key or value of the spec is wrong."""


class InputError(UsageError):
    """Training data or model files cannot be used."""


class RunConflict(UsageError):
    """The store holds a different run of that name."""


class UnknownRun(UsageError):
    """No run of that name is known, or more than one is."""


class StoreError(UsageError):
    """The store cannot be read or written."""


class MissingDependency(UsageError):
    """A package of an optional extra is not installed."""


class ModelNotServed(UsageError):
    """The server of a model does not start, or cannot answer."""


class ServerUnusable(UsageError):
    """A model's server cannot be reached, or refuses."""


class RecordUnreadable(UsageError):
    """A record in the run folder cannot be read by this version."""


def unreadable(what: str, data: bytes, error: Exception, schema_version: int) -> RecordUnreadable:
    """Say whether a record is of a newer version or damaged; they ask for different things."""
    # 4 ms that only a broken record pays.
    import json

    try:
        found = json.loads(data.splitlines()[0])["schema_version"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        found = None
    if isinstance(found, int) and found > schema_version:
        return RecordUnreadable(
            f"{what} has schema_version {found}.",
            f"Upgrade: this version reads up to {schema_version}.",
        )
    return RecordUnreadable(
        f"{what} is damaged: {_first_complaint(error)}.",
        "Restore it from a copy of the store, or delete the run.",
    )


def _first_complaint(error: Exception) -> str:
    """Return what is wrong first, and where, of the several things that pydantic may name."""
    complaints = getattr(error, "errors", None)
    if complaints is None:
        return " ".join(str(error).split())[:120]
    first = complaints()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])


class CloudRefused(OrchestratorError):
    """A cloud said no: credentials, permissions or quota."""

    exit_code = 3


class GaveUp(OrchestratorError):
    """Time, retries or budget are used up; the run can be resumed."""

    exit_code = 4


class TrainingFailed(OrchestratorError):
    """The training program itself failed."""

    exit_code = 5


class Detached(OrchestratorError):
    """The user stopped watching; the run goes on."""

    exit_code = 130
