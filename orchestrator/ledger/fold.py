"""From facts to the state of a run: order-independent and idempotent, so every reader agrees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from orchestrator.attempts import EndReason
from orchestrator.ledger.facts import (
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointDeleted,
    CheckpointRestored,
    DecisionMade,
    Entry,
    LaunchEnded,
    LaunchReady,
    LaunchStarted,
    NoticeReceived,
    RunEnded,
    RunLaunched,
    StopRequested,
    TerminatedBy,
)
from orchestrator.ledger.record import RunRecord
from orchestrator.offers import Offer
from orchestrator.spec import RunSpec, parse_spec


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchView:
    """One launch; `attempt` is None when no agent ever claimed one on it."""

    launch: str
    offer: Offer
    num_nodes: int
    started_at: datetime
    ready_at: datetime | None = None
    ended_at: datetime | None = None
    reason: EndReason | None = None
    terminated_by: TerminatedBy | None = None
    detail: str | None = None
    attempt: int | None = None
    attempt_started_at: datetime | None = None
    resumed_step: int | None = None
    world_size: int | None = None
    notice_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitView:
    """One committed checkpoint."""

    at: datetime
    attempt: int
    step: int
    manifest: str
    num_bytes: int
    num_objects: int
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """All that the facts say."""

    record: RunRecord
    spec: RunSpec
    """The spec with every amendment."""
    num_entries: int
    launched_at: datetime
    """When the run was launched last; retry budgets count from here."""
    launches: tuple[LaunchView, ...]
    commits: tuple[CommitView, ...]
    restores: tuple[tuple[int, int], ...]
    """(attempt, bytes read) of each restore."""
    decisions: tuple[tuple[datetime, DecisionMade], ...]
    attempt_ends: tuple[AttemptEnded, ...]
    is_stop_requested: bool
    ended_at: datetime | None
    ended: RunEnded | None

    @property
    def current_launch(self) -> LaunchView | None:
        """The launch that is up or coming up."""
        open_launches = [launch for launch in self.launches if launch.ended_at is None]
        return open_launches[-1] if open_launches else None

    @property
    def last_commit_step(self) -> int:
        """Step of the newest committed checkpoint, 0 if none."""
        return max((commit.step for commit in self.commits), default=0)

    @property
    def num_preemptions(self) -> int:
        """Nodes that were taken back or lost."""
        lost = (EndReason.PREEMPTED, EndReason.NODE_LOST)
        return sum(1 for launch in self.launches if launch.reason in lost)


@dataclass(slots=True)
class _Draft:
    launches: dict[str, LaunchView] = field(default_factory=dict)
    commits: dict[str, CommitView] = field(default_factory=dict)
    restores: list[tuple[int, int]] = field(default_factory=list)
    decisions: list[tuple[datetime, DecisionMade]] = field(default_factory=list)
    attempt_ends: dict[int, AttemptEnded] = field(default_factory=dict)
    spec_changes: dict[str, object] = field(default_factory=dict)
    launched_at: datetime | None = None
    stop_requested_at: datetime | None = None
    ended_at: datetime | None = None
    ended: RunEnded | None = None


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
    is_over = draft.ended_at is not None and draft.ended_at >= launched_at
    return RunState(
        record=record,
        spec=_amend(record.spec, draft.spec_changes),
        num_entries=len(unique),
        launched_at=launched_at,
        launches=tuple(
            sorted(map(_in_order, draft.launches.values()), key=lambda one: one.started_at)
        ),
        commits=tuple(sorted(draft.commits.values(), key=lambda one: (one.step, one.attempt))),
        restores=tuple(draft.restores),
        decisions=tuple(draft.decisions),
        attempt_ends=tuple(draft.attempt_ends[number] for number in sorted(draft.attempt_ends)),
        is_stop_requested=draft.stop_requested_at is not None
        and draft.stop_requested_at >= launched_at,
        ended_at=draft.ended_at if is_over else None,
        ended=draft.ended if is_over else None,
    )


def _add_launch(draft: _Draft, at: datetime, body: LaunchStarted) -> None:
    draft.launches[body.launch] = LaunchView(
        launch=body.launch,
        offer=body.offer.to_offer(),
        num_nodes=body.num_nodes,
        started_at=at,
    )


def _add_commit(draft: _Draft, at: datetime, body: CheckpointCommitted) -> None:
    if body.manifest in draft.commits:
        return  # the attempt that resumed from it said so again
    draft.commits[body.manifest] = CommitView(
        at=at, **{name: getattr(body, name) for name in type(body).model_fields if name != "fact"}
    )


def _apply(draft: _Draft, entry: Entry) -> None:
    body = entry.body
    if isinstance(body, (RunLaunched, StopRequested, RunEnded)):
        _apply_to_run(draft, entry.at, body)
    elif isinstance(body, (LaunchReady, LaunchEnded, AttemptStarted)):
        _apply_to_launch(draft, entry.at, body)
    elif isinstance(body, NoticeReceived):
        _apply_notice(draft, entry.at, body)
    elif isinstance(body, CheckpointDeleted):
        _apply_deletion(draft, entry.at, body)
    elif isinstance(body, CheckpointRestored):
        draft.restores.append((body.attempt, body.num_bytes))
    elif isinstance(body, DecisionMade):
        draft.decisions.append((entry.at, body))
    elif isinstance(body, AttemptEnded):
        draft.attempt_ends[body.attempt] = body


def _apply_notice(draft: _Draft, at: datetime, body: NoticeReceived) -> None:
    for launch in draft.launches.values():
        if launch.attempt == body.attempt:
            draft.launches[launch.launch] = replace(launch, notice_at=at)


def _apply_deletion(draft: _Draft, at: datetime, body: CheckpointDeleted) -> None:
    for key, commit in draft.commits.items():
        if key.startswith(f"{body.checkpoint}/"):
            draft.commits[key] = replace(commit, deleted_at=at)


def _apply_to_run(
    draft: _Draft, at: datetime, body: RunLaunched | StopRequested | RunEnded
) -> None:
    if isinstance(body, RunLaunched):
        draft.launched_at = at
        draft.spec_changes.update(body.amended)
    elif isinstance(body, StopRequested):
        draft.stop_requested_at = at
    else:
        draft.ended_at, draft.ended = at, body


def _apply_to_launch(
    draft: _Draft, at: datetime, body: LaunchReady | LaunchEnded | AttemptStarted
) -> None:
    launch = draft.launches.get(body.launch)
    if launch is None:
        return  # its LaunchStarted has not arrived yet; a later fold sees both
    if isinstance(body, LaunchReady):
        launch = replace(launch, ready_at=at)
    elif isinstance(body, LaunchEnded):
        launch = replace(
            launch,
            ended_at=at,
            reason=body.reason,
            terminated_by=body.terminated_by,
            detail=body.detail,
        )
    else:
        launch = replace(
            launch,
            attempt=body.attempt,
            attempt_started_at=at,
            resumed_step=body.step,
            world_size=body.world_size,
        )
    draft.launches[body.launch] = launch


def _in_order(launch: LaunchView) -> LaunchView:
    """Clocks may be minutes off: let nothing end before it began."""
    ready_at, ended_at = launch.ready_at, launch.ended_at
    if ready_at is not None:
        ready_at = max(ready_at, launch.started_at)
    if ended_at is not None:
        ended_at = max(ended_at, ready_at or launch.started_at)
    return replace(launch, ready_at=ready_at, ended_at=ended_at)


def _amend(spec: RunSpec, changes: dict[str, object]) -> RunSpec:
    if not changes:
        return spec
    return parse_spec({**spec.model_dump(mode="json"), **changes})
