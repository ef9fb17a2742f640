"""Clean conversations before they are trained on: `python -m train.data.clean`, run as a program.

This process imports none of the trainer's libraries; it passes options on and translates errors.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.errors import (
    GaveUp,
    InputError,
    MissingDependency,
    OrchestratorError,
    UsageError,
)

SCHEMA_VERSION = 1
_KINDS: dict[str, type[OrchestratorError]] = {
    "LibraryMissing": MissingDependency,
    "OutputConflict": UsageError,
    "EndpointFailed": GaveUp,
}
_AGAIN = "Give the same command again: it goes on where it was."


class CleaningReport(BaseModel):
    """What `train.data.clean` says of its work; the lists are in the file that `report` names."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    schema_version: int = Field(le=SCHEMA_VERSION)
    input: str
    input_sha256: str
    output: str
    output_sha256: str
    report: str
    num_read: int
    num_kept: int
    num_dropped: int
    num_changed: int
    num_written: int
    reasons: dict[str, int]
    augmentation: dict[str, Any] | None = None


def clean(source: Path, output: Path, options: list[str]) -> CleaningReport:
    """Clean `source` into `output`, or finish what an earlier call began.

    Raises:
        InputError: the input cannot be used.
        UsageError: the output is there already, or is being written.
        MissingDependency: the trainer's libraries are not installed.
        GaveUp: it was interrupted, or an endpoint failed; the same call goes on.
    """
    # Absolute, for it runs in an empty folder: a folder `train` where we are would shadow ours.
    paths = [str(path.resolve()) for path in (source, output)]
    command = [sys.executable, "-m", "train.data.clean", *paths, *options, "--with-parent"]
    with (
        tempfile.TemporaryDirectory() as scratch,
        # Its stdin is a pipe that is never written to: it closes when this process ends, anyhow.
        subprocess.Popen(
            command, cwd=scratch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as program,
    ):
        assert program.stdout is not None
        try:
            printed = program.stdout.read()
        except KeyboardInterrupt as error:
            program.wait()
            raise GaveUp("Interrupted.", _AGAIN) from error
    if program.returncode == 0:
        return CleaningReport.model_validate_json(printed)
    raise _problem(program.returncode, printed)


def _problem(code: int, printed: str) -> OrchestratorError:
    if code in (130, -2):
        return GaveUp("Interrupted.", _AGAIN)
    try:
        problem = json.loads(printed.strip().splitlines()[-1])
        return _KINDS.get(problem["kind"], InputError)(problem["what"], problem["next_step"])
    except (ValueError, KeyError, IndexError, TypeError):
        return InputError(f"Cleaning ended with exit status {code}.", f"See above. {_AGAIN}")
