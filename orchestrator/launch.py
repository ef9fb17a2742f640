"""Launch a planned run, or pick up the one that is there: the same command does both."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from checkpoints.store import ObjectStore, open_store
from orchestrator import __version__
from orchestrator.clock import Clock
from orchestrator.cloud.local.launcher import is_supervised, start_supervisor
from orchestrator.errors import UsageError
from orchestrator.home import run_home
from orchestrator.inputs import stage_inputs
from orchestrator.ledger.facts import FinalState, QuotedOffer, RunLaunched
from orchestrator.ledger.fold import RunState, fold
from orchestrator.ledger.heartbeat import read_heartbeats
from orchestrator.ledger.journal import Journal, LedgerReader
from orchestrator.ledger.record import RunRecord, create_record, read_record
from orchestrator.ledger.requests import clear_requests
from orchestrator.offers import PRICES_AS_OF, PRICES_SOURCE
from orchestrator.plan import LaunchPlan
from orchestrator.runs import remember_run
from orchestrator.spec import AMENDABLE, RunSpec

# A supervisor beats every 2 s; one that has been silent for this long is gone.
_SUPERVISOR_SILENCE = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A run that is under way, or already over."""

    store: ObjectStore
    record: RunRecord
    home: Path
    is_new: bool
    is_over: bool


def launch(plan: LaunchPlan, clock: Clock) -> Launched:
    """Start the run of `plan`, attach to it when it runs, resume it when it had stopped.

    Raises:
        RunConflict: the store holds a different run of that name.
        UsageError: this version has no backend for the plan's infra.
    """
    spec = plan.spec
    if plan.inputs is None or plan.num_steps is None:
        assert not isinstance(spec.infra, str)
        raise UsageError(
            f"Launching on {', '.join(spec.infra)} needs the SkyPilot backend, which this version "
            "does not have yet.",
            "Price it with orchestrate plan, or run it here with --set infra=local.",
        )
    store = open_store(f"{spec.store}/{spec.name}")
    is_new = read_record(store) is None
    if is_new:
        stage_inputs(plan.inputs, store)
    record = create_record(store, _new_record(plan, clock))
    return _supervise(store, record, spec, clock, is_new=is_new)


def relaunch(store: ObjectStore, record: RunRecord, spec: RunSpec, clock: Clock) -> Launched:
    """Go on with a run from its run folder alone, under the limits of `spec`."""
    return _supervise(store, record, spec, clock, is_new=False)


def current_state(store: ObjectStore, record: RunRecord) -> RunState:
    """Return the run's state as the facts tell it now."""
    return fold(record, LedgerReader(store).read())


def _supervise(
    store: ObjectStore, record: RunRecord, spec: RunSpec, clock: Clock, *, is_new: bool
) -> Launched:
    home = run_home(record.spec.store, record.run)
    remember_run(home, record.run, record.spec.store)
    state = current_state(store, record)
    is_over = state.ended is not None and state.ended.state is FinalState.SUCCEEDED
    if not is_over:
        _go_on(store, state, spec, home, clock)
    return Launched(store=store, record=record, home=home, is_new=is_new, is_over=is_over)


def _go_on(store: ObjectStore, state: RunState, spec: RunSpec, home: Path, clock: Clock) -> None:
    amended = _amendments(state, spec)
    supervised = is_supervised(home) or _is_run_elsewhere(store, clock)
    if supervised and not amended:
        return
    if not supervised:
        clear_requests(store)
    launched = RunLaunched(host=socket.gethostname(), amended=amended)
    Journal(store, "cli", clock).note(launched)
    if not supervised:
        start_supervisor(store, home)


def _is_run_elsewhere(store: ObjectStore, clock: Clock) -> bool:
    """Say whether another machine supervises the run: a second one would only fence the first."""
    return any(
        heartbeat.writer.startswith("supervisor-")
        and heartbeat.host != socket.gethostname()
        and clock.now() - heartbeat.at < _SUPERVISOR_SILENCE
        for heartbeat in read_heartbeats(store)
    )


def _amendments(state: RunState, spec: RunSpec) -> dict[str, object]:
    """Return the sections that may change on a relaunch and do."""
    before, after = state.spec.model_dump(mode="json"), spec.model_dump(mode="json")
    return {key: after[key] for key in sorted(AMENDABLE) if before[key] != after[key]}


def _new_record(plan: LaunchPlan, clock: Clock) -> RunRecord:
    assert plan.inputs is not None
    assert plan.num_steps is not None
    spec = plan.spec
    return RunRecord(
        run=spec.name,
        run_id=f"{spec.name}-{secrets.token_hex(4)}",
        created_at=clock.now(),
        code_version=__version__,
        spec=spec,
        num_steps=plan.num_steps,
        offers=tuple(QuotedOffer.quote(offer) for offer in plan.offers),
        prices_source=f"{PRICES_SOURCE} ({PRICES_AS_OF})",
        home_place=plan.offers[0].place,
        inputs=plan.inputs.files,
        simulated=spec.is_local,
    )
