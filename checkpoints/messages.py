"""What a rank and its node's uploader say to each other, as JSON over a Unix socket; torch-free.

A rank says `Attach` (with the descriptor of its staged memory), then any number of `Upload` and
`Commit`; each is answered by one `Uploaded`, `CommittedReply` or `Refusal`.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from checkpoints import errors
from checkpoints.errors import CheckpointError, SaveFailed
from checkpoints.rank_object import Part


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Slot(_Message):
    """Rows that a rank writes, and where in its staged memory they lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    first: int
    rows_shape: tuple[int, ...]
    start: int
    length: int


class Attach(_Message):
    """The memory whose descriptor follows replaces what was attached before."""

    kind: Literal["attach"] = "attach"
    num_bytes: int


class Upload(_Message):
    """Write the slots as one object."""

    kind: Literal["upload"] = "upload"
    key: str
    slots: tuple[Slot, ...]


class Retention(_Message):
    """Which checkpoints to keep after a commit."""

    keep_last: int
    keep_every: int | None
    keep_back: int | None = None


class Commit(_Message):
    """Make a checkpoint of all ranks' parts; as many `Part`s follow, one message each."""

    kind: Literal["commit"] = "commit"
    run: str
    attempt: int
    step: int
    world_size: int
    created_at: AwareDatetime
    state: dict[str, JsonValue]
    retention: Retention | None


class Uploaded(_Message):
    """An object is stored."""

    kind: Literal["uploaded"] = "uploaded"
    part: Part


class Committed(_Message):
    """HEAD names the checkpoint since `at`; `deleted` are the prefixes of what was pruned."""

    kind: Literal["committed"] = "committed"
    step: int
    manifest: str
    num_bytes: int
    num_objects: int
    at: AwareDatetime
    deleted: tuple[str, ...] = ()


class Refusal(_Message):
    """It was not done; `error` is the name of a class of `checkpoints.errors`."""

    kind: Literal["refusal"] = "refusal"
    error: str
    what: str
    next_step: str

    @classmethod
    def of(cls, error: Exception) -> Refusal:
        """Return the message that tells of `error`; what is not ours becomes SaveFailed."""
        if isinstance(error, CheckpointError):
            return cls(error=type(error).__name__, what=error.what, next_step=error.next_step)
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return cls(error=SaveFailed.__name__, what=what, next_step="Read the attempt's log.")

    def to_error(self) -> CheckpointError:
        """Return the error: Fenced as it is, everything else as a failed save."""
        kind = errors.Fenced if self.error == errors.Fenced.__name__ else SaveFailed
        return kind(self.what, self.next_step)


Request = Annotated[Attach | Upload | Commit, Field(discriminator="kind")]
Reply = Annotated[Uploaded | Committed | Refusal, Field(discriminator="kind")]


def send(connection: Connection, message: BaseModel) -> None:
    """Send one message; raises OSError when the other side is gone."""
    connection.send_bytes(message.model_dump_json().encode())
