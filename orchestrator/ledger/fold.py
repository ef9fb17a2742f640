"""From facts to the state of a run: order-independent and idempotent, so every reader agrees."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

from orchestrator.attempts import EndReason
from orchestrator.ledger.facts import (
    AmendedBy,
    AttemptEnded,
    AttemptStarted,
    BillRead,
    CheckpointCommitted,
    CheckpointDamaged,
    CheckpointDeleted,
    CheckpointRestored,
    ControllerSeen,
    DecisionMade,
    Entry,
    LaunchEnded,
    LaunchReady,
    LaunchStarted,
    ModelEvaluated,
    NoticeReceived,
    PriceSampled,
    RunAmended,
    RunEnded,
    RunLaunched,
    StopRequested,
    TerminatedBy,
)
from orchestrator.ledger.record import RunRecord
from orchestrator.ledger.replicas import ReplicaView, fold_replicas, is_of_replica
from orchestrator.offers import Offer
from orchestrator.redact import redact
from orchestrator.spec import RunSpec, parse_spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a node costs per hour from an instant on, and who says so."""

    at: datetime
    usd_per_hour: Decimal
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchView:
    """One launch; `attempt` is None when no agent ever claimed one on it."""

    launch: str
    offer: Offer
    num_nodes: int
    started_at: datetime
    launched_at: datetime | None = None
    """Which launch of the run this belongs to, where it says so."""
    asked_zone: str | None = None
    """As offers name it; the offer has the zone that was given."""
    ready_at: datetime | None = None
    ended_at: datetime | None = None
    reason: EndReason | None = None
    terminated_by: TerminatedBy | None = None
    was_watched: bool = False
    """Its nodes were watched until they were gone, which was not our doing."""
    detail: str | None = None
    attempt: int | None = None
    attempt_started_at: datetime | None = None
    resumed_step: int | None = None
    world_size: int | None = None
    notice_at: datetime | None = None
    leaves_at: datetime | None = None
    """When the notice said that the nodes would be taken."""
    prices: tuple[Price, ...] = ()
    """What was asked since the launch, in order."""

    @property
    def is_lost(self) -> bool:
        """Say whether its nodes were taken back or lost, other than by us."""
        lost = (EndReason.PREEMPTED, EndReason.NODE_LOST)
        return self.reason in lost and self.terminated_by is not TerminatedBy.US


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitView:
    """One committed checkpoint."""

    at: datetime
    attempt: int
    step: int
    manifest: str
    num_bytes: int
    num_objects: int
    place: str | None = None
    """Cloud/region of the store that has its objects, if not the run's own."""
    deleted_at: datetime | None = None
    damage: str | None = None
    """What is wrong with it, if an attempt could not resume from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreView:
    """What an attempt read at its start."""

    attempt: int
    step: int
    place: str | None
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerView:
    """A machine that was paid for because it carried out one launch of the run."""

    launched_at: datetime
    ended_at: datetime | None
    """When that launch of the run was over."""
    followed_at: datetime | None
    """When the run was launched again."""
    cloud: str
    region: str
    instance_type: str
    usd_per_hour: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """All that the facts say."""

    record: RunRecord
    spec: RunSpec
    """The spec with every amendment."""
    file_spec: RunSpec
    """The spec as the file of the last launch had it."""
    num_entries: int
    """Facts of the run; not those of who looked at its bill or its model, for to look is not to
    spend, nor those of who served the model, which is no part of its training."""
    num_by_writer: Mapping[str, int]
    """How many facts of each writer these are."""
    launched_at: datetime
    """When the run was launched last; retry budgets count from here."""
    launches: tuple[LaunchView, ...]
    commits: tuple[CommitView, ...]
    restores: tuple[RestoreView, ...]
    controllers: tuple[ControllerView, ...]
    decisions: tuple[tuple[datetime, DecisionMade], ...]
    attempt_ends: tuple[AttemptEnded, ...]
    is_stop_requested: bool
    ended_at: datetime | None
    ended: RunEnded | None
    paused: timedelta
    """How long the run was over between its launches: nobody carried it out."""
    clock_skew: timedelta
    """By how much clocks disagree at the least: what had to be put in order between launches'
    beginnings and ends."""
    bills: tuple[BillRead, ...]
    """The latest reading of each source, the latest last."""
    replicas: tuple[ReplicaView, ...]
    """Nodes that served the run's model, in order."""
    judged: tuple[ModelEvaluated, ...]
    """The evaluations by a judge, by step; of one that was made again, the last telling."""

    @property
    def current_launch(self) -> LaunchView | None:
        """The launch that is up or coming up."""
        return self.open_launches[-1] if self.open_launches else None

    @property
    def open_launches(self) -> tuple[LaunchView, ...]:
        """Launches that have not ended; more than one only where something went wrong."""
        return tuple(launch for launch in self.launches if launch.ended_at is None)

    def is_current(self, launch: LaunchView) -> bool:
        """Say whether a launch belongs to the last launch command; retry budgets count these."""
        if launch.launched_at is not None:
            return launch.launched_at == self.launched_at
        return launch.started_at >= self.launched_at

    @property
    def last_commit_step(self) -> int:
        """Step of the newest committed checkpoint that is not damaged, 0 if none."""
        return max((commit.step for commit in self.commits if commit.damage is None), default=0)

    @property
    def num_preemptions(self) -> int:
        """Nodes that were taken back or lost, other than by us."""
        return sum(launch.is_lost for launch in self.launches)


@dataclass(slots=True)
class _Draft:
    launches: dict[str, LaunchView] = field(default_factory=dict)
    commits: dict[str, CommitView] = field(default_factory=dict)
    restores: dict[int, RestoreView] = field(default_factory=dict)
    controllers: dict[datetime, ControllerSeen] = field(default_factory=dict)
    damages: dict[str, str] = field(default_factory=dict)
    decisions: list[tuple[datetime, DecisionMade]] = field(default_factory=list)
    attempt_ends: dict[int, AttemptEnded] = field(default_factory=dict)
    spec_changes: dict[str, object] = field(default_factory=dict)
    file_changes: dict[str, object] = field(default_factory=dict)
    deleted_at: dict[str, datetime] = field(default_factory=dict)
    launched_at: datetime | None = None
    launched: list[datetime] = field(default_factory=list)
    stops: set[datetime] = field(default_factory=set)
    ends: dict[datetime, tuple[datetime, RunEnded]] = field(default_factory=dict)


def fold(record: RunRecord, entries: Iterable[Entry]) -> RunState:
    """Return what the entries say, whatever their order and however often each occurs."""
    unique = {(entry.writer, entry.number): entry for entry in entries}
    draft = _Draft()
    # Launches first: an agent's clock may run ahead of the supervisor's, and facts refer to them.
    ordered = sorted(unique.values(), key=lambda entry: entry.order)
    for entry in ordered:
        if isinstance(entry.body, LaunchStarted):
            _add_launch(draft, entry.at, entry.body)
        elif isinstance(entry.body, CheckpointCommitted):
            _add_commit(draft, entry.at, entry.body)
    for entry in ordered:
        _apply(draft, entry)
    launched_at = draft.launched_at or record.created_at
    ended_at, ended = draft.ends.get(launched_at, (None, None))
    return RunState(
        record=record,
        spec=_amend(record.spec, draft.spec_changes),
        file_spec=_amend(record.spec, draft.file_changes),
        num_entries=sum(
            not isinstance(entry.body, (BillRead, ModelEvaluated)) and not is_of_replica(entry)
            for entry in ordered
        ),
        num_by_writer=Counter(writer for writer, _ in unique),
        launched_at=launched_at,
        launches=tuple(
            sorted(
                (_in_order(_as_restored(draft, launch)) for launch in draft.launches.values()),
                key=lambda one: one.started_at,
            )
        ),
        commits=_with_fates(draft),
        restores=tuple(draft.restores[number] for number in sorted(draft.restores)),
        controllers=tuple(_controllers(draft)),
        decisions=tuple(draft.decisions),
        attempt_ends=tuple(draft.attempt_ends[number] for number in sorted(draft.attempt_ends)),
        is_stop_requested=launched_at in draft.stops,
        ended_at=ended_at,
        ended=ended,
        paused=_paused(draft),
        clock_skew=max(
            (_out_of_order(launch) for launch in draft.launches.values()), default=timedelta()
        ),
        bills=_bills(ordered),
        replicas=fold_replicas(ordered),
        judged=_judged(ordered),
    )


def _add_launch(draft: _Draft, at: datetime, body: LaunchStarted) -> None:
    draft.launches[body.launch] = LaunchView(
        launch=body.launch,
        offer=body.offer.to_offer(),
        num_nodes=body.num_nodes,
        started_at=at,
        launched_at=body.launched_at,
        asked_zone=body.offer.zone,
    )


def _add_commit(draft: _Draft, at: datetime, body: CheckpointCommitted) -> None:
    if body.manifest in draft.commits:
        return  # the attempt that resumed from it said so again
    draft.commits[body.manifest] = CommitView(
        at=at, **{name: getattr(body, name) for name in type(body).model_fields if name != "fact"}
    )


def _apply(draft: _Draft, entry: Entry) -> None:
    body = entry.body
    if isinstance(body, (RunLaunched, RunAmended, StopRequested, RunEnded)):
        _apply_to_run(draft, entry.at, body)
    elif isinstance(body, (LaunchReady, LaunchEnded, PriceSampled, AttemptStarted)):
        _apply_to_launch(draft, entry.at, body)
    elif isinstance(body, ControllerSeen):
        draft.controllers.setdefault(body.launched_at, body)
    elif isinstance(body, NoticeReceived):
        _apply_notice(draft, entry.at, body)
    elif isinstance(body, CheckpointDeleted):
        draft.deleted_at.setdefault(body.checkpoint, entry.at)
    elif isinstance(body, CheckpointRestored):
        draft.restores[body.attempt] = RestoreView(
            attempt=body.attempt, step=body.step, place=body.place, num_bytes=body.num_bytes
        )
    elif isinstance(body, CheckpointDamaged):
        draft.damages[body.manifest] = body.what
    elif isinstance(body, DecisionMade):
        draft.decisions.append((entry.at, body))
    elif isinstance(body, AttemptEnded):
        error = None if body.error is None else redact(body.error)
        draft.attempt_ends[body.attempt] = body.model_copy(update={"error": error})


def _apply_notice(draft: _Draft, at: datetime, body: NoticeReceived) -> None:
    for launch in draft.launches.values():
        if launch.attempt == body.attempt:
            draft.launches[launch.launch] = replace(
                launch, notice_at=at, leaves_at=body.deadline_at
            )


def _bills(ordered: Iterable[Entry]) -> tuple[BillRead, ...]:
    """Return the latest reading of each source; of two at one instant the one that is told last."""
    latest: dict[tuple[str, str], BillRead] = {}
    for body in (entry.body for entry in ordered):
        if isinstance(body, BillRead):
            known = latest.get((body.cloud, body.source))
            if known is None or body.read_at >= known.read_at:
                latest[body.cloud, body.source] = body
    return tuple(sorted(latest.values(), key=lambda one: (one.read_at, one.cloud, one.source)))


def _judged(ordered: Iterable[Entry]) -> tuple[ModelEvaluated, ...]:
    latest = {
        entry.body.evaluation: entry.body
        for entry in ordered
        if isinstance(entry.body, ModelEvaluated)
    }
    return tuple(sorted(latest.values(), key=lambda one: (one.step, one.evaluation)))


def _with_fates(draft: _Draft) -> tuple[CommitView, ...]:
    return tuple(
        replace(
            commit,
            deleted_at=draft.deleted_at.get(commit.manifest.rpartition("/")[0]),
            damage=draft.damages.get(commit.manifest),
        )
        for commit in sorted(draft.commits.values(), key=lambda one: (one.step, one.attempt))
    )


def _apply_to_run(
    draft: _Draft, at: datetime, body: RunLaunched | RunAmended | StopRequested | RunEnded
) -> None:
    if isinstance(body, RunLaunched):
        draft.launched_at = at
        draft.launched.append(at)
    elif isinstance(body, RunAmended):
        draft.spec_changes.update(body.sections)
        if body.by is AmendedBy.SPEC_FILE:
            draft.file_changes.update(body.sections)
    elif isinstance(body, StopRequested):
        draft.stops.add(body.launched_at)
    else:
        draft.ends[body.launched_at] = (at, body)


def _controllers(draft: _Draft) -> Iterator[ControllerView]:
    for launched_at, seen in sorted(draft.controllers.items()):
        ended_at, _ = draft.ends.get(launched_at, (None, None))
        yield ControllerView(
            launched_at=launched_at,
            ended_at=None if ended_at is None else max(ended_at, launched_at),
            followed_at=next((at for at in draft.launched if at > launched_at), None),
            cloud=seen.cloud,
            region=seen.region,
            instance_type=seen.instance_type,
            usd_per_hour=seen.usd_per_hour,
        )


def _apply_to_launch(
    draft: _Draft,
    at: datetime,
    body: LaunchReady | LaunchEnded | PriceSampled | AttemptStarted,
) -> None:
    launch = draft.launches.get(body.launch)
    if launch is None:
        return  # its LaunchStarted has not arrived yet; a later fold sees both
    if isinstance(body, LaunchReady):
        launch = _ready(launch, body.up_at or at, body)
    elif isinstance(body, LaunchEnded):
        launch = _ended(launch, body.gone_at or at, body)
    elif isinstance(body, PriceSampled):
        price = Price(at=at, usd_per_hour=body.usd_per_hour, source=body.source)
        launch = replace(launch, prices=(*launch.prices, price))
    else:
        launch = replace(
            launch,
            attempt=body.attempt,
            attempt_started_at=at,
            resumed_step=body.step,
            world_size=body.world_size,
        )
    draft.launches[body.launch] = launch


def _ready(launch: LaunchView, ready_at: datetime, body: LaunchReady) -> LaunchView:
    """Take the first of several writers' instants: what was up then was billed then."""
    if launch.ready_at is not None and launch.ready_at <= ready_at:
        return launch
    offer = launch.offer if body.zone is None else replace(launch.offer, zone=body.zone)
    return replace(launch, ready_at=ready_at, offer=offer)


def _ended(launch: LaunchView, ended_at: datetime, body: LaunchEnded) -> LaunchView:
    """Take the first end that anybody saw: nothing is billed after it."""
    if launch.ended_at is not None and launch.ended_at <= ended_at:
        return launch
    return replace(
        launch,
        ended_at=ended_at,
        reason=body.reason,
        terminated_by=body.terminated_by,
        was_watched=body.was_watched,
        detail=None if body.detail is None else redact(body.detail),
    )


def _as_restored(draft: _Draft, launch: LaunchView) -> LaunchView:
    """An attempt resumes where its trainer says, which is earlier than claimed after damage."""
    restored = draft.restores.get(launch.attempt or 0)
    return launch if restored is None else replace(launch, resumed_step=restored.step)


def _in_order(launch: LaunchView) -> LaunchView:
    """Clocks may be minutes off: let nothing end before it began."""
    ready_at, ended_at = launch.ready_at, launch.ended_at
    if ready_at is not None:
        ready_at = max(ready_at, launch.started_at)
    if ended_at is not None:
        ended_at = max(ended_at, ready_at or launch.started_at)
    return replace(launch, ready_at=ready_at, ended_at=ended_at)


def _paused(draft: _Draft) -> timedelta:
    total = timedelta()
    for launched_at, next_at in itertools.pairwise(draft.launched):
        ended_at, _ = draft.ends.get(launched_at, (None, None))
        if ended_at is not None:
            total += max(timedelta(), next_at - max(ended_at, launched_at))
    return total


def _out_of_order(launch: LaunchView) -> timedelta:
    """Return by how much the launch's instants are in the wrong order, as they were written."""
    instants = (launch.started_at, launch.ready_at, launch.attempt_started_at, launch.ended_at)
    known = [instant for instant in instants if instant is not None]
    gaps = (earlier - later for earlier, later in itertools.combinations(known, 2))
    return max([timedelta(), *gaps])


def _amend(spec: RunSpec, changes: dict[str, object]) -> RunSpec:
    if not changes:
        return spec
    return parse_spec({**spec.model_dump(mode="json"), **changes})
