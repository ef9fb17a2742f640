"""What is known of the data that a run was trained on: staged files, and how it was cleaned."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.layout import input_key
from checkpoints.regular_files import read_regular
from checkpoints.store import ObjectStore
from orchestrator.errors import InputError, unreadable
from orchestrator.inputs import InputFile
from orchestrator.ledger.record import RunRecord

# As train.data.dataset writes them.
_TRAIN_NAME, _EVAL_NAME = "train.safetensors", "eval.safetensors"
_REPORT_VERSION = 1
# It names every conversation that was changed.
_MOST_BYTES = 256 << 20


class CleaningReport(BaseModel):
    """What `orchestrate data prepare` wrote beside its output; its lists are not needed here."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    input_sha256: str
    options: dict[str, Any]
    num_read: int
    num_kept: int
    num_dropped: int
    num_changed: int
    reasons: dict[str, int]

    @property
    def language(self) -> str | None:
        """The one language that was kept, None if all were."""
        found = self.options.get("rules", {}).get("language")
        return found if isinstance(found, str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """One staged file of prepared data."""

    num_conversations: int
    """Ids that differ."""
    num_samples: int
    num_tokens: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataUsed:
    """The data of a run; None for what is not known or was not kept apart."""

    train: Samples | None
    evaluation: Samples | None
    cleaning: CleaningReport | None


def data_used(folder: ObjectStore, record: RunRecord, report: Path | None) -> DataUsed:
    """Return what the run folder says of its data, and the report on its cleaning.

    Without `report` it is looked for beside the data. Raises InputError, RecordUnreadable.
    """
    staged = {file.name: file for file in record.inputs}
    if report is None and "://" not in record.spec.data.train:
        beside = Path(f"{record.spec.data.train}.report.json")
        report = beside if beside.is_file() else None
    return DataUsed(
        train=_samples(folder, staged.get(_TRAIN_NAME)),
        evaluation=_samples(folder, staged.get(_EVAL_NAME)),
        cleaning=None if report is None else _read_report(report),
    )


def _samples(folder: ObjectStore, file: InputFile | None) -> Samples | None:
    """Read a file's header alone: the ids of its samples and the lengths of its arrays."""
    if file is None:
        return None
    key, length = input_key(file.sha256, file.name), bytearray(8)
    folder.read_into(key, 0, [memoryview(length)])
    header = bytearray(int.from_bytes(length, "little"))
    folder.read_into(key, 8, [memoryview(header)])
    fields = json.loads(header)
    return Samples(
        num_conversations=len(set(json.loads(fields["__metadata__"]["ids"]))),
        num_samples=fields["predictions"]["shape"][0],
        num_tokens=fields["tokens"]["shape"][0],
        sha256=file.sha256,
    )


def _read_report(path: Path) -> CleaningReport:
    try:
        text = read_regular(path, _MOST_BYTES)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}.", "Give the OUT.report.json of the data."
        ) from error
    try:
        return CleaningReport.model_validate_json(text)
    except ValidationError as error:
        raise unreadable(str(path), text, error, _REPORT_VERSION) from error
