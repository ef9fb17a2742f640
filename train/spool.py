"""What the trainer tells the agent, and back, through files on the node's scratch disk.

Rank 0 appends records to spool.jsonl, every rank leaves an outcome; the agent leaves notices and
says how much of the spool it has uploaded. Torch-free: the agent reads with this module.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
)

from train.errors import SpoolInvalid

log = logging.getLogger(__name__)

SPOOL_NAME = "spool.jsonl"
UPLOADED_NAME = "uploaded.json"
# Rank 0 looks this often whether the agent has caught up; a look costs 20 us.
_POLL_S = 0.02
_BEAT_EVERY_S = 5.0
# What an outcome or a notice takes at the most; a page of most disks.
_SPARE_BYTES = 4096


def _to_utc(instant: datetime) -> datetime:
    try:
        return instant.astimezone(timezone.utc)
    except OverflowError as error:  # 0001-01-01T00:00+14:00 is before the first year
        raise ValueError(str(error)) from error


UtcDatetime = Annotated[AwareDatetime, AfterValidator(_to_utc)]
Seconds = Annotated[FiniteFloat, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Event(_Record):
    at: UtcDatetime
    """End of what is recorded."""


class Resumed(_Event):
    """The attempt is ready to train; `manifest` is None when it starts from the model's weights."""

    kind: Literal["resumed"] = "resumed"
    step: Count
    manifest: str | None
    store: str | None = None
    """URL of the store that it was read from, if not the run folder."""
    num_bytes: Count
    seconds: Seconds
    world_size: Annotated[int, Field(ge=1)] | None = None
    """Ranks of the attempt."""
    device: str | None = None
    """What a rank computes on, as its maker names it."""
    numerics: str | None = None
    """Digest of all that decides rounding: only attempts of one digest are equal bit for bit."""


class PhaseName(str, Enum):
    """What the trainer did instead of training."""

    STARTUP = "startup"
    RESTORE = "restore"
    CHECKPOINT = "checkpoint"
    EVALUATE = "evaluate"


class Phase(_Event):
    """Time that went into something other than steps."""

    kind: Literal["phase"] = "phase"
    name: PhaseName
    started_at: UtcDatetime
    seconds: Seconds


class Step(_Event):
    """One optimizer update; the numbers are the same bits at every replay."""

    kind: Literal["step"] = "step"
    step: Count
    started_at: UtcDatetime
    seconds: Seconds
    loss: FiniteFloat
    grad_norm: FiniteFloat
    learning_rate: FiniteFloat
    num_tokens: Count
    num_trained_tokens: Count
    batch: Count | None = None
    """Number of the batch that it was trained on: more than the step's where some were left out."""
    data_seconds: Seconds | None = None
    """Of `seconds`: reading the batch and putting it together, on rank 0."""
    update_seconds: Seconds | None = None
    """Of `seconds`: clipping and the optimizer, on rank 0."""
    mfu: FiniteFloat | None = None
    """Model FLOPs utilization, where the peak of the device is known."""
    peak_memory_bytes: Count | None = None
    """Most that rank 0 has held so far: of the GPU's memory, or of the machine's."""


class LeftOut(_Event):
    """A batch was not trained on, because its loss or gradient was out of all proportion."""

    kind: Literal["left_out"] = "left_out"
    step: Count
    batch: Count
    why: str


class RolledBack(_Event):
    """Batches in a row were out of proportion: the weights are those of a checkpoint again."""

    kind: Literal["rolled_back"] = "rolled_back"
    step: Count
    to_step: Count


class Commit(_Event):
    """A checkpoint is committed: HEAD points to it."""

    kind: Literal["commit"] = "commit"
    step: Count
    manifest: str
    store: str | None = None
    """URL of the store that has its objects, if not the run folder."""
    num_bytes: Count
    num_objects: Count
    seconds: Seconds


class Deleted(_Event):
    """A checkpoint (its prefix) was pruned."""

    kind: Literal["deleted"] = "deleted"
    checkpoint: str


class Damaged(_Event):
    """A committed checkpoint cannot be resumed from; the attempt goes back to the one before it."""

    kind: Literal["damaged"] = "damaged"
    manifest: str
    what: str


class SaveFailed(_Event):
    """A save failed, without a commit as far as is known; training goes on."""

    kind: Literal["save_failed"] = "save_failed"
    step: Count
    what: str


class Evaluated(_Event):
    """Mean loss per trained token over the evaluation samples."""

    kind: Literal["evaluated"] = "evaluated"
    step: Count
    loss: FiniteFloat
    num_trained_tokens: Count


class Flush(_Event):
    """Rank 0 waits until the agent has uploaded the spool up to here."""

    kind: Literal["flush"] = "flush"


Record = (
    Resumed
    | Phase
    | Step
    | LeftOut
    | RolledBack
    | Commit
    | Deleted
    | Damaged
    | SaveFailed
    | Evaluated
    | Flush
)
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


class Uploaded(_Record):
    """How much of the spool the agent has uploaded, counted from its start."""

    num_bytes: Count


class OutcomeKind(str, Enum):
    """How a rank ended."""

    DONE = "done"
    SAVED = "saved"
    FENCED = "fenced"
    CUT_OFF = "cut_off"  # the store could not be reached: nothing is wrong with the training
    FAILED = "failed"


class Outcome(_Record):
    """How a rank ended, and after which step; torchrun turns every exit status into 1."""

    outcome: OutcomeKind
    step: Count
    at: UtcDatetime = Field(default_factory=lambda: datetime.now(timezone.utc))
    """When it ended: of several ranks that failed, the first one knows why."""
    error: str | None = None

    @property
    def is_well(self) -> bool:
        """Say whether the rank did what it was to do."""
        return self.outcome in (OutcomeKind.DONE, OutcomeKind.SAVED)


class Notice(_Record):
    """The node goes away at `deadline_at`."""

    deadline_at: UtcDatetime


class Risk(_Record):
    """The node may go away, nobody knows when or whether: worth one save, not leaving."""

    noted_at: UtcDatetime


class Spool:
    """Rank 0's end of the spool file at `path`; uploaded.json lies beside it.

    While the disk takes nothing, records wait in memory: training does not depend on them. The loop
    and the thread that saves both append.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._uploaded = path.with_name(UPLOADED_NAME)
        self._waiting = b""
        self._is_ill = False
        self._one_at_a_time = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()

    def append(self, record: Record) -> None:
        """Append one line; readers heed only whole ones."""
        line = record.model_dump_json().encode() + b"\n"
        with self._one_at_a_time:
            self._waiting += line
            self._write_out()

    def wait_uploaded(self, timeout_s: float) -> bool:
        """Append a `flush` line and wait for the agent to reach it; False if it does not."""
        self.append(Flush(at=datetime.now(timezone.utc)))
        if self._waiting:
            return False  # the agent can only read what is on the disk
        num_bytes = self._path.stat().st_size
        give_up_at = time.monotonic() + timeout_s
        while True:
            uploaded = _read(self._uploaded, Uploaded)
            if uploaded is not None and uploaded.num_bytes >= num_bytes:
                return True
            if time.monotonic() >= give_up_at:
                return False
            time.sleep(_POLL_S)

    def _write_out(self) -> None:
        """Write what waits, as far as the disk takes it."""
        try:
            with self._path.open("ab", buffering=0) as file:
                while self._waiting:
                    self._waiting = self._waiting[file.write(self._waiting) or 0 :]
        except OSError as error:
            if not self._is_ill:
                log.warning("records wait in memory until the disk takes them: %s", error)
            self._is_ill = True
        else:
            self._is_ill = False

    def _drop_torn_line(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def spool_path(spool_dir: Path) -> Path:
    """Return the path of the records."""
    return spool_dir / SPOOL_NAME


def uploaded_path(spool_dir: Path) -> Path:
    """Return the path at which the agent says how much it has uploaded."""
    return spool_dir / UPLOADED_NAME


def outcome_path(spool_dir: Path, rank: int) -> Path:
    """Return the path of a rank's outcome."""
    return spool_dir / f"outcome-{rank:05d}.json"


def read_records(path: Path, offset: int) -> tuple[list[Record], int]:
    """Return the complete lines from byte `offset` on, and the offset behind them.

    A file that is not there yet has no records. Raises SpoolInvalid on a line that does not parse.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            lines = file.read()
    except FileNotFoundError:
        return [], offset
    lines = lines[: lines.rfind(b"\n") + 1]
    try:
        records = [_RECORD.validate_json(line) for line in lines.splitlines()]
    except ValidationError as error:
        raise SpoolInvalid(
            f"{path} holds a record that does not parse after byte {offset}: {error.errors()[0]}.",
            "Run agent and trainer from the same version.",
        ) from error
    return records, offset + len(lines)


def write_uploaded(spool_dir: Path, num_bytes: int) -> None:
    """Say (as the agent) that the spool is uploaded up to `num_bytes`."""
    _write(uploaded_path(spool_dir), Uploaded(num_bytes=num_bytes))


def keep_room(path: Path) -> None:
    """Take the room now that writing `path` will need: then it can be written to a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for spare in _spares(path):
        with suppress(OSError):
            _take_room(spare)


def write_outcome(spool_dir: Path, rank: int, outcome: Outcome) -> None:
    """Leave a rank's outcome, atomically."""
    _write(outcome_path(spool_dir, rank), outcome)


def read_outcome(spool_dir: Path, rank: int) -> Outcome | None:
    """Return a rank's outcome, None if it left none."""
    return _read(outcome_path(spool_dir, rank), Outcome)


def write_notice(path: Path, notice: Notice) -> None:
    """Announce (as the agent) the node's end, atomically."""
    _write(path, notice)


def read_notice(path: Path) -> Notice | None:
    """Return the notice, None if there is none."""
    return _read(path, Notice)


def risk_path(notice_file: Path) -> Path:
    """Return where the agent notes a risk, beside its notices."""
    return notice_file.with_name("risk.json")


def write_risk(path: Path, risk: Risk) -> None:
    """Note (as the agent) that the node is at risk, atomically."""
    _write(path, risk)


def read_risk(path: Path) -> Risk | None:
    """Return the latest risk, None if there is none."""
    return _read(path, Risk)


class Pulse:
    """A rank's sign of life: a file that holds its process and whose time says when it got on."""

    def __init__(self, spool_dir: Path, rank: int) -> None:
        spool_dir.mkdir(parents=True, exist_ok=True)
        self._path = spool_dir / f"pulse-{rank:05d}"
        self._path.write_text(str(os.getpid()))

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beat from a thread meanwhile, for work of minutes that cannot."""
        is_over = threading.Event()

        def go_on() -> None:
            while not is_over.wait(_BEAT_EVERY_S):
                self.beat()

        thread = threading.Thread(target=go_on, name="pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def beat(self) -> None:
        """Say that this rank gets on; takes 1 us."""
        with suppress(OSError):  # of a disk that has become read-only
            os.utime(self._path)


def read_pulses(spool_dir: Path) -> dict[int, float]:
    """Return when each rank on this node last got on, in seconds of its clock, by process."""
    found = {}
    for path in spool_dir.glob("pulse-*"):
        with suppress(OSError, ValueError):
            found[int(path.read_text())] = path.stat().st_mtime
    return found


_File = TypeVar("_File", bound=_Record)


def _write(path: Path, record: _Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = record.model_dump_json().encode()
    try:
        temporary.write_bytes(text)
    except OSError:
        _write_to_spare(path, temporary, text)
        temporary.replace(path)
        keep_room(path)
    else:
        temporary.replace(path)


def _write_to_spare(path: Path, temporary: Path, text: bytes) -> None:
    """Write in the room that was kept for it; raise OSError if none was."""
    spare = next(filter(Path.exists, _spares(path)), None)
    if spare is None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    spare.replace(temporary)
    with temporary.open("r+b") as file:
        file.write(text)
        file.truncate()


def _take_room(spare: Path) -> None:
    if spare.exists():
        return
    try:
        spare.write_bytes(bytes(_SPARE_BYTES))
    except OSError:
        spare.unlink()  # there is a file, but nothing in it
        raise


def _spares(path: Path) -> list[Path]:
    """Return two: one becomes the file, the other replaces it, and what is replaced gives room."""
    return [path.with_name(f".{path.name}.spare-{number}") for number in range(2)]


def _read(path: Path, kind: type[_File]) -> _File | None:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise SpoolInvalid(
            f"{path} does not parse: {error.errors()[0]['msg']}.",
            "Run agent and trainer from the same version.",
        ) from error
