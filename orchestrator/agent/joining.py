"""How a node comes into an attempt: node 0 claims it, every other node joins it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.errors import RecordInvalid
from checkpoints.fence import claim_attempt
from checkpoints.layout import attempt_key
from checkpoints.manifest import Claim
from checkpoints.store import ObjectStore
from orchestrator.agent.config import AgentConfig
from orchestrator.agent.facts import AttemptFacts
from orchestrator.agent.gang import Gang, Head
from orchestrator.agent.hazard import run_hazard
from orchestrator.agent.member import Member
from orchestrator.agent.peer import Welcome
from orchestrator.clock import Clock
from orchestrator.ledger.fold import RunState
from orchestrator.ledger.record import RunRecord
from orchestrator.ledger.state import StateReader
from orchestrator.places import objects_url, other_objects_urls
from train.config import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One node's part in an attempt."""

    gang: Gang
    claim: Claim
    facts: AttemptFacts
    train: TrainConfig


def lead(config: AgentConfig, store: ObjectStore, state: RunState, clock: Clock) -> Part:
    """Claim the attempt, say so in the ledger, and listen for the other nodes; raise Fenced."""
    claim = claim_for(config, store, state.record, clock)
    facts = _facts(config, store, state, clock, claim)
    facts.started(config.launch)
    train = _train_config(config, store, state, claim)
    welcome = Welcome(launch=config.launch, attempt=claim.attempt, train=train)
    gang = Head(config, state.record.run_id, welcome)
    return Part(gang=gang, claim=claim, facts=facts, train=train)


def claim_for(config: AgentConfig, store: ObjectStore, record: RunRecord, clock: Clock) -> Claim:
    """Claim the next attempt for a launch; raise Fenced if the ledger says that it is over."""
    states = StateReader(store, record)

    def is_over() -> bool:
        ours = (one for one in states.read().launches if one.launch == config.launch)
        return any(launch.ended_at is not None for launch in ours)

    return claim_attempt(
        store,
        claimed_by=config.launch,
        claimed_at=clock.now(),
        world_size=config.world_size,
        offer={"launch": config.launch, "zone": config.offer.zone},
        is_superseded=is_over,
    )


def follow(config: AgentConfig, store: ObjectStore, state: RunState, clock: Clock) -> Part:
    """Join the attempt that node 0 has claimed, with all that ranks must be told alike.

    Raises:
        HeadMissing: node 0 never answered.
        RecordInvalid: the run folder knows nothing of what node 0 says.
    """
    gang = Member(config, state.record.run_id)
    welcome = gang.welcome
    claim = Claim.from_json(store.get(attempt_key(welcome.attempt)).data)
    if claim.claimed_by != welcome.launch:
        raise RecordInvalid(
            f"attempt {claim.attempt} is claimed by {claim.claimed_by}, not by {welcome.launch}",
            "Launch again: another launch took its place meanwhile.",
        )
    return Part(
        gang=gang,
        claim=claim,
        facts=_facts(config, store, state, clock, claim),
        # Not by this node's own reading of the ledger, which may have changed since node 0's: ranks
        # that disagree on when to save wait for one another for ever.
        train=welcome.train.model_copy(update=_own_paths(config.scratch)),
    )


def _facts(
    config: AgentConfig, store: ObjectStore, state: RunState, clock: Clock, claim: Claim
) -> AttemptFacts:
    return AttemptFacts(store, claim, clock, spec=state.spec, offer=config.offer.to_offer())


def _train_config(
    config: AgentConfig, store: ObjectStore, state: RunState, claim: Claim
) -> TrainConfig:
    spec = state.spec
    return TrainConfig(
        run=state.record.run,
        attempt=claim.attempt,
        store=store.url,
        objects_store=objects_url(spec, config.offer.to_offer()),
        other_stores=other_objects_urls(spec),
        parent=claim.parent,
        num_steps=state.record.num_steps,
        model=spec.model,
        train=spec.train,
        checkpoints=spec.checkpoints,
        hazard=run_hazard(state),
        **_own_paths(config.scratch),
    )


def notice_file(scratch: Path) -> Path:
    """Return where the trainer looks for notices."""
    return scratch / "notice.json"


def _own_paths(scratch: Path) -> dict[str, Any]:
    """Return what differs between the nodes of one attempt."""
    return {
        "inputs_dir": scratch / "inputs",
        "spool_dir": scratch / "spool",
        "notice_file": notice_file(scratch),
        "owner_pid": os.getpid(),
    }
