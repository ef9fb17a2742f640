"""The facts of a run: past tense, append-only, each with its writer, number and instant.

Loss curves and timings are measurements; they live in steps/, not here.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from orchestrator.attempts import EndReason, StopReason
from orchestrator.billing.kinds import BillKind
from orchestrator.errors import RecordUnreadable, unreadable
from orchestrator.offers import Market, Offer
from train.spool import UtcDatetime

# 2 has the question of a decision, 3 has sampled prices and bills that were read, 4 evaluations and
# what serves the model, 5 who gave a command.
SCHEMA_VERSION = 6


Instant = UtcDatetime


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QuotedOffer(_Fact):
    """An offer with the price that was quoted for it; the price never changes afterwards."""

    cloud: str
    region: str
    zone: str
    instance_type: str
    accelerators: str
    market: Market
    usd_per_hour: Decimal
    on_demand_usd_per_hour: Decimal
    doubt: str | None = None

    @classmethod
    def quote(cls, offer: Offer) -> QuotedOffer:
        """Freeze an offer."""
        return cls(**{name: getattr(offer, name) for name in cls.model_fields})

    def to_offer(self) -> Offer:
        """Return the offer as policies see it."""
        return Offer(**{name: getattr(self, name) for name in type(self).model_fields})


class TerminatedBy(str, Enum):
    """Who ended a node; some clouds waive the bill when it was them."""

    CLOUD = "cloud"
    US = "us"
    ITSELF = "itself"


def terminated_by(reason: EndReason) -> TerminatedBy:
    """Return who ended the nodes of a launch on a cloud that ended for `reason`."""
    match reason:
        case (
            EndReason.PREEMPTED | EndReason.NODE_LOST | EndReason.NO_CAPACITY | EndReason.NO_ACCESS
        ):
            return TerminatedBy.CLOUD
        case EndReason.DRAINED | EndReason.SETUP_FAILED | EndReason.STOPPED:
            return TerminatedBy.US
        case EndReason.SUCCEEDED | EndReason.FENCED | EndReason.HANG | EndReason.TRAINING_FAILED:
            return TerminatedBy.ITSELF


class FinalState(str, Enum):
    """How a run ended; it can be launched again unless it succeeded."""

    SUCCEEDED = "SUCCEEDED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


class Command(_Fact):
    """Who changed the run by which command; for people, nothing is decided by it."""

    user: str
    argv: tuple[str, ...]
    """Without what looks like a secret."""
    version: str
    """This program's, and in a checkout the commit."""


class RunLaunched(_Fact):
    """A user launched the run, or launched it again; retry budgets start anew."""

    fact: Literal["run_launched"] = "run_launched"
    host: str
    command: Command | None = None
    """None in runs of earlier versions."""


class AmendedBy(str, Enum):
    """Where an amendment comes from: the next launch of the same file must not undo a `--set`."""

    SPEC_FILE = "spec_file"
    RESUME = "resume"


class RunAmended(_Fact):
    """A user changed sections of the spec that may change: limits, infra, checkpoints, tracking."""

    fact: Literal["run_amended"] = "run_amended"
    host: str
    by: AmendedBy
    sections: dict[str, Any]
    command: Command | None = None


class Asked(_Fact):
    """The question behind a decision, as far as the facts do not tell it."""

    at: Instant
    seconds_per_step: float | None
    """Wall seconds; None before any step was measured."""
    read: dict[str, int]
    """How many facts of each writer were known, where that is not what the same author's decision
    before this one says."""
    offers: tuple[QuotedOffer, ...] | None = None
    """None: those of the same author's decision before, at first those of the run's record."""


class DecisionMade(_Fact):
    """The policy decided something other than to go on."""

    fact: Literal["decision_made"] = "decision_made"
    action: Literal["keep", "launch", "wait", "drain", "stop"]
    """`keep` is never recorded: it is what a replay may find in place of another."""
    why: str
    offer: QuotedOffer | None = None
    until: Instant | None = None
    asked: Asked | None = None
    """None in runs of earlier versions."""


class LaunchStarted(_Fact):
    """Nodes were asked for."""

    fact: Literal["launch_started"] = "launch_started"
    launch: str
    offer: QuotedOffer
    num_nodes: int
    launched_at: Instant | None = None
    """Which launch of the run this belongs to, whatever the clocks say; None: by the clocks."""


class LaunchReady(_Fact):
    """The nodes are up: the bill starts."""

    fact: Literal["launch_ready"] = "launch_ready"
    launch: str
    up_at: Instant | None = None
    """When they came up, where that was learned only afterwards."""
    zone: str | None = None
    """The zone that was given, where it is not the one that was asked for."""


class LaunchEnded(_Fact):
    """The nodes are gone, or never came: the bill ends."""

    fact: Literal["launch_ended"] = "launch_ended"
    launch: str
    reason: EndReason
    terminated_by: TerminatedBy
    detail: str | None = None
    """For a simulated preemption: which one of the script, or the market's."""
    gone_at: Instant | None = None
    """When the nodes must have been gone, where nobody was there to see it."""
    was_watched: bool = False
    """Whoever says so had watched them, and found them gone: nobody on our side had ended them."""


class PriceSampled(_Fact):
    """What the nodes of a launch cost from now on, asked again while they were up."""

    fact: Literal["price_sampled"] = "price_sampled"
    launch: str
    usd_per_hour: Decimal = Field(ge=0)
    """Per node."""
    source: str


class ControllerSeen(_Fact):
    """The machine that carries one launch of the run out is one that is paid for."""

    fact: Literal["controller_seen"] = "controller_seen"
    launched_at: Instant
    """Which launch of the run it carries out."""
    cloud: str
    region: str
    instance_type: str
    usd_per_hour: Decimal | None
    """None: the catalog does not have it."""


class AttemptStarted(_Fact):
    """An agent claimed the attempt and starts the trainer."""

    fact: Literal["attempt_started"] = "attempt_started"
    attempt: int
    launch: str
    world_size: int
    step: int
    manifest: str | None
    host: str


class NoticeReceived(_Fact):
    """The node was told that it goes away."""

    fact: Literal["notice_received"] = "notice_received"
    attempt: int
    deadline_at: Instant


class CheckpointCommitted(_Fact):
    """HEAD points to a new checkpoint."""

    fact: Literal["checkpoint_committed"] = "checkpoint_committed"
    attempt: int
    step: int
    manifest: str
    place: str | None = None
    """Cloud/region of the store that has its objects, if not the run's own."""
    num_bytes: int
    num_objects: int


class CheckpointDamaged(_Fact):
    """A committed checkpoint could not be resumed from; HEAD went back to the one before it."""

    fact: Literal["checkpoint_damaged"] = "checkpoint_damaged"
    attempt: int
    manifest: str
    what: str


class CheckpointRestored(_Fact):
    """An attempt read its state from a checkpoint."""

    fact: Literal["checkpoint_restored"] = "checkpoint_restored"
    attempt: int
    step: int
    place: str | None = None
    """Cloud/region of the store that it was read from, if not the run's own."""
    num_bytes: int


class CheckpointDeleted(_Fact):
    """Retention removed a checkpoint."""

    fact: Literal["checkpoint_deleted"] = "checkpoint_deleted"
    checkpoint: str
    command: Command | None = None
    """None where a node collected it, by the rules of the spec."""


class AttemptEnded(_Fact):
    """The agent saw its trainer end."""

    fact: Literal["attempt_ended"] = "attempt_ended"
    attempt: int
    reason: EndReason
    step: int
    error: str | None = None


class StopRequested(_Fact):
    """A user asked the run to stop."""

    fact: Literal["stop_requested"] = "stop_requested"
    host: str
    launched_at: Instant
    """Which launch of the run is to stop; a later one goes on, whatever the clocks say."""
    command: Command | None = None


class BillRead(_Fact):
    """Somebody read what a cloud says that it billed for the nodes with the run's tag."""

    fact: Literal["bill_read"] = "bill_read"
    cloud: str
    source: str
    """`Cost Explorer`, or the names of the files; a later reading of a source replaces it."""
    read_at: Instant
    start: date
    """First day (UTC) that was asked for, or that the files cover."""
    end: date
    """The day after the last one."""
    currency: Literal["USD"]
    usd: dict[BillKind, Decimal]
    instance_hours: Decimal | None
    """Of all nodes together; None where the cloud counts something else."""
    num_lines: int
    is_final: bool
    """The cloud says that it has invoiced all of it."""


class ReplicaStarted(_Fact):
    """A node began to serve the run's model, alone or with others."""

    fact: Literal["replica_started"] = "replica_started"
    service: str
    replica: str
    """Named by no other replica of any service."""
    offer: QuotedOffer
    num_models: int = Field(ge=1)
    """Models on the node, which share its price evenly."""
    num_own: int = Field(default=1, ge=1)
    """How many of them are this run's."""
    up_at: Instant
    """When the node came up, which is when its bill began."""


class ReplicaNoticed(_Fact):
    """The cloud told a replica's node that it goes away."""

    fact: Literal["replica_noticed"] = "replica_noticed"
    replica: str
    deadline_at: Instant


class ReplicaEndReason(str, Enum):
    """Why a node no longer serves."""

    PREEMPTED = "preempted"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"  # it fell silent without a word; nobody writes that


class ReplicaEnded(_Fact):
    """A replica saw that its node ends, or that it cannot serve."""

    fact: Literal["replica_ended"] = "replica_ended"
    replica: str
    reason: ReplicaEndReason


Interval: TypeAlias = tuple[float, float, float]
"""A mean with the bounds of its 95 % interval: mean, low, high."""


class ModelEvaluated(_Fact):
    """Somebody had a checkpoint judged; all of it is in evaluations/<evaluation>.json."""

    fact: Literal["model_evaluated"] = "model_evaluated"
    evaluation: str
    step: int
    baseline: str | None
    judge: str
    num_questions: int
    questions: str
    """Where they are from, in words."""
    score: Interval | None
    """Mean of the judge's scores, 1 to 5; None where it gave none."""
    baseline_score: Interval | None
    wins: int
    ties: int
    losses: int
    no_verdicts: int
    """Of all that was asked: ratings and comparisons."""
    win_rate: Interval | None
    usd: Decimal | None
    """What judging cost in all; None without a price."""


class RunEnded(_Fact):
    """The supervisor is done with the run."""

    fact: Literal["run_ended"] = "run_ended"
    state: FinalState
    reason: StopReason
    why: str
    launched_at: Instant
    """Which launch of the run this ends."""

    @classmethod
    def after(cls, reason: StopReason, why: str, launched_at: datetime) -> RunEnded:
        """Return the end of a run that stops for `reason`."""
        return cls(state=_final_state(reason), reason=reason, why=why, launched_at=launched_at)


def _final_state(reason: StopReason) -> FinalState:
    match reason:
        case StopReason.DONE:
            return FinalState.SUCCEEDED
        case (
            StopReason.REQUESTED
            | StopReason.BUDGET
            | StopReason.NO_CAPACITY
            | StopReason.TOO_MANY_PREEMPTIONS
        ):
            return FinalState.STOPPED
        case StopReason.TOO_MANY_FAILURES:
            return FinalState.FAILED


Fact = (
    RunLaunched
    | RunAmended
    | DecisionMade
    | LaunchStarted
    | LaunchReady
    | LaunchEnded
    | PriceSampled
    | ControllerSeen
    | AttemptStarted
    | NoticeReceived
    | CheckpointCommitted
    | CheckpointDamaged
    | CheckpointRestored
    | CheckpointDeleted
    | AttemptEnded
    | StopRequested
    | BillRead
    | ReplicaStarted
    | ReplicaNoticed
    | ReplicaEnded
    | ModelEvaluated
    | RunEnded
)


class Entry(_Fact):
    """One fact in the ledger; (writer, number) is its identity."""

    schema_version: int = SCHEMA_VERSION
    writer: str
    number: int
    at: Instant
    body: Annotated[Fact, Field(discriminator="fact")]

    @property
    def order(self) -> tuple[datetime, str, int]:
        """Sort key that every reader agrees on."""
        return (self.at, self.writer, self.number)


_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


def parse_entries(data: bytes, key: str) -> list[Entry]:
    """Parse one event object.

    Raises:
        RecordUnreadable: a line does not parse, or was written by a newer version.
    """
    try:
        entries = [_ENTRY.validate_json(line) for line in data.splitlines()]
    except ValidationError as error:
        raise unreadable(f"The event object {key}", data, error, SCHEMA_VERSION) from error
    newer = [entry for entry in entries if entry.schema_version > SCHEMA_VERSION]
    if newer:
        raise RecordUnreadable(
            f"The event object {key} has schema_version {newer[0].schema_version}.",
            f"Upgrade: this version reads up to {SCHEMA_VERSION}.",
        )
    return entries
