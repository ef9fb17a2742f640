"""Launch a planned run, or pick up the one that is there: the same command does both."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from checkpoints.layout import CHECKPOINTS
from checkpoints.probe import check_conditional_writes
from checkpoints.store import ObjectStore, is_bucket
from orchestrator import __version__
from orchestrator.audit import this_command
from orchestrator.clock import Clock
from orchestrator.cloud.local.launcher import is_supervised, start_supervisor
from orchestrator.errors import SpecError
from orchestrator.home import run_home
from orchestrator.inputs import stage_files
from orchestrator.ledger.facts import AmendedBy, FinalState, QuotedOffer, RunAmended, RunLaunched
from orchestrator.ledger.fold import RunState, fold
from orchestrator.ledger.heartbeat import read_heartbeats
from orchestrator.ledger.journal import Journal, LedgerReader
from orchestrator.ledger.record import (
    Percentiles,
    RecordedForecast,
    RunRecord,
    create_record,
    read_record,
    require_same_run,
)
from orchestrator.ledger.requests import clear_requests
from orchestrator.offers import MarketPreference, Offer, list_offers
from orchestrator.places import open_places
from orchestrator.plan import Estimate, LaunchPlan
from orchestrator.redact import unsigned
from orchestrator.runs import open_run_folder, remember_run
from orchestrator.spec import AMENDABLE, RunSpec

# A supervisor beats every 2 s; one that has been silent for this long is gone.
_SUPERVISOR_SILENCE = timedelta(seconds=60)
# Of the 12 or more CPU cores that clouds give per GPU; the same wherever an attempt runs.
_NODE_THREADS = 8


WITHOUT_PLUGIN = (
    "SkyPilot's API server lacks our plugin: SkyPilot's own strategy recovers the run. It may "
    "return to the region just lost, does not wait for spot or go back to it, and knows no "
    "deadline; the budget is watched on the nodes alone. Install it: orchestrate doctor --fix"
)
Teller = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A run that is under way, or already over."""

    store: ObjectStore
    record: RunRecord
    home: Path
    is_over: bool


def launch(plan: LaunchPlan, clock: Clock, tell: Teller) -> Launched:
    """Start the run of `plan`, attach to it when it runs, resume it when it had stopped.

    `tell` hears what takes a while, and what is lost without our plugin.

    Raises:
        RunConflict: the store holds a different run of that name.
        UnfitStore: the store lets two writers win.
    """
    spec = plan.spec
    assert plan.inputs is not None, "a plan to launch has its inputs prepared"
    store = open_run_folder(spec.store, spec.name)
    existing, wanted = read_record(store), _new_record(plan, clock)
    if existing is not None:
        require_same_run(store, existing, wanted)
    elif is_bucket(store.url):
        check_conditional_writes(store)
    for place in open_places(store, spec).stores:
        place.list(CHECKPOINTS)  # one that refuses us is to be known here, not on a billed node
    # Content-addressed, so staging again only restores what has gone missing.
    stage_files(plan.inputs.folder, plan.inputs.files, store)
    record = create_record(store, wanted)
    baseline = current_state(store, record).file_spec
    amendment = _amendment(baseline, spec, AmendedBy.SPEC_FILE)
    return _supervise(store, record, amendment, clock, tell)


def relaunch(
    store: ObjectStore, record: RunRecord, spec: RunSpec, clock: Clock, tell: Teller
) -> Launched:
    """Go on with a run from its run folder alone, under the limits of `spec`."""
    amendment = _amendment(current_state(store, record).spec, spec, AmendedBy.RESUME)
    return _supervise(store, record, amendment, clock, tell)


def current_state(store: ObjectStore, record: RunRecord) -> RunState:
    """Return the run's state as the facts tell it now."""
    return fold(record, LedgerReader(store).read())


def _supervise(
    store: ObjectStore,
    record: RunRecord,
    amendment: RunAmended | None,
    clock: Clock,
    tell: Teller,
) -> Launched:
    home = run_home(record.spec.store, record.run)
    remember_run(home, record.run, record.spec.store)
    state = current_state(store, record)
    is_over = state.ended is not None and state.ended.state is FinalState.SUCCEEDED
    if not is_over:
        if amendment is not None:
            Journal(store, "cli", clock).note(amendment)
        if state.spec.is_local:
            _go_on_here(store, state, home, clock)
        else:
            _go_on_clouds(store, state, clock, tell)
    return Launched(store=store, record=record, home=home, is_over=is_over)


def _go_on_here(store: ObjectStore, state: RunState, home: Path, clock: Clock) -> None:
    """Start the run's supervisor, unless there is one."""
    if state.ended is not None:
        _wait_for_predecessor(home, clock)
    elif is_supervised(home) or is_run_elsewhere(store, clock):
        return
    _note_launch(store, state, clock)
    start_supervisor(store, home)


def _go_on_clouds(store: ObjectStore, state: RunState, clock: Clock, tell: Teller) -> None:
    """Hand the run to SkyPilot, unless a managed job carries it out already."""
    # SkyPilot's modules take seconds, for clouds only.
    from orchestrator.cloud.skypilot import launcher

    tell("Asking SkyPilot ...")
    has_strategy = launcher.has_strategy()
    was_launched = state.ended is None and state.num_entries > 0
    if was_launched and launcher.await_job(state.record, clock) is not None:
        return
    if not has_strategy:
        tell(WITHOUT_PLUGIN)
    _note_launch(store, state, clock)
    state = current_state(store, state.record)
    offers = [quoted.to_offer() for quoted in state.record.offers]
    allowed = [offer for offer in offers if state.spec.limits.market.allows(offer.market)]
    job_id = launcher.start_job(store, state, allowed, has_strategy=has_strategy)
    tell(f"Managed job {job_id} carries it out; this machine may be switched off.")


def _note_launch(store: ObjectStore, state: RunState, clock: Clock) -> None:
    """Write down that the run is launched: after its last launch, whatever this machine's clock.

    The latest one counts, and a stop or an end is that of the launch which it names.
    """
    clear_requests(store)
    launched = RunLaunched(host=socket.gethostname(), command=this_command())
    Journal(store, "cli", clock).note(launched, after=state.launched_at)


def is_carried_out(launched: Launched, clock: Clock) -> bool:
    """Say whether somebody runs it: a supervisor, here or elsewhere, or a managed job."""
    if launched.record.spec.is_local:
        return is_supervised(launched.home) or is_run_elsewhere(launched.store, clock)
    from orchestrator.cloud.skypilot.launcher import live_job

    return live_job(launched.record) is not None


def why_job_ended(launched: Launched) -> str:
    """Return what SkyPilot says of the run's last managed job."""
    from orchestrator.cloud.skypilot.client import find_jobs

    found = find_jobs(launched.record.run_id)
    return f"{found[0].status} ({found[0].reason})" if found else "SkyPilot does not know it"


def is_run_elsewhere(store: ObjectStore, clock: Clock) -> bool:
    """Say whether another machine supervises the run: a second one would only fence the first."""
    return any(
        heartbeat.writer.startswith("supervisor-")
        and heartbeat.host != socket.gethostname()
        and clock.now() - heartbeat.at < _SUPERVISOR_SILENCE
        for heartbeat in read_heartbeats(store)
    )


def _wait_for_predecessor(home: Path, clock: Clock) -> None:
    """Let a supervisor that has written the run's end give up its lock."""
    for _ in range(50):
        if not is_supervised(home):
            return
        clock.sleep(timedelta(seconds=0.1))


def _amendment(before: RunSpec, after: RunSpec, by: AmendedBy) -> RunAmended | None:
    """Return the sections that may change on a relaunch and do.

    Raises:
        SpecError: the run would move between this machine and a cloud.
    """
    if before.is_local != after.is_local:
        raise SpecError(
            f"infra: {after.infra} differs in kind from the run's {before.infra}.",
            "Launch it under another name.",
        )
    changed = [key for key in sorted(AMENDABLE) if getattr(before, key) != getattr(after, key)]
    document = after.model_dump(mode="json")
    if not changed:
        return None
    return RunAmended(
        host=socket.gethostname(),
        by=by,
        sections={key: document[key] for key in changed},
        command=this_command(),
    )


def _new_record(plan: LaunchPlan, clock: Clock) -> RunRecord:
    assert plan.inputs is not None
    assert plan.num_steps is not None
    spec = plan.spec
    # Read once, here; who reads the bucket is not to open it, and a new signature is no other run.
    data = spec.data.model_copy(update={"train": unsigned(spec.data.train)})
    spec = spec.model_copy(update={"data": data})
    return RunRecord(
        run=spec.name,
        run_id=f"{spec.name}-{secrets.token_hex(4)}",
        created_at=clock.now(),
        code_version=__version__,
        spec=spec,
        num_steps=plan.num_steps,
        offers=tuple(QuotedOffer.quote(offer) for offer in _all_offers(plan)),
        prices_source=str(plan.prices),
        home_place=plan.egress.home,
        inputs=plan.inputs.files,
        simulated=spec.is_local,
        threads_per_rank=_threads_per_rank(spec),
        forecast=None if plan.estimate is None else _recorded(plan.estimate),
    )


def _recorded(estimate: Estimate) -> RecordedForecast:
    found = estimate.forecast
    return RecordedForecast(
        hours=Percentiles(p10=found.hours.p10, p50=found.hours.p50, p90=found.hours.p90),
        usd=Percentiles(p10=found.usd.p10, p50=found.usd.p50, p90=found.usd.p90),
        work_hours=estimate.work / timedelta(hours=1),
    )


def _all_offers(plan: LaunchPlan) -> tuple[Offer, ...]:
    """Quote both markets: limits.market may change later, and the policy keeps to it."""
    kinds, both = plan.spec.nodes.accelerators, MarketPreference.SPOT_WITH_FALLBACK
    return list_offers(plan.prices, kinds, plan.spec.clouds, both)


def _threads_per_rank(spec: RunSpec) -> int:
    """Fix the number of threads for all attempts: sums over other numbers of threads differ."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    if not spec.is_local:
        return _NODE_THREADS
    return max(1, (os.cpu_count() or 1) // spec.local_options.ranks)
