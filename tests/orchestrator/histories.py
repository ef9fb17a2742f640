"""Build run folders' contents for tests: records, facts and measurements at chosen instants."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal

from orchestrator.attempts import EndReason, StopReason
from orchestrator.ledger.facts import (
    AmendedBy,
    AttemptStarted,
    CheckpointCommitted,
    ControllerSeen,
    Entry,
    Fact,
    FinalState,
    LaunchEnded,
    LaunchReady,
    LaunchStarted,
    QuotedOffer,
    RunAmended,
    RunEnded,
    RunLaunched,
    TerminatedBy,
)
from orchestrator.ledger.measurements import Measured
from orchestrator.ledger.record import RunRecord
from orchestrator.offers import Market, Offer
from orchestrator.spec import RunSpec, parse_spec
from train.spool import Phase, PhaseName, Step

START = datetime(2026, 11, 22, 12, 0, tzinfo=timezone.utc)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def make_spec(**changes: object) -> RunSpec:
    document: dict[str, object] = {
        "name": "demo",
        "store": "memory://demo",
        "infra": "local",
        "model": {"base": "/nowhere/model"},
        "data": {"train": "/nowhere/data.json"},
        "train": {"num_steps": 10},
        "limits": {"budget_usd": 100},
        "local": {"time_scale": 60},
    }
    return parse_spec({**document, **changes})


def make_offer(
    region: str = "us-east-1",
    market: Market = Market.SPOT,
    usd: str = "10",
    cloud: str = "aws",
    zone: str | None = None,
) -> Offer:
    return Offer(
        cloud=cloud,
        region=region,
        zone=zone or f"{region}-a",
        instance_type="p4de.24xlarge",
        accelerators="A100-80GB:8",
        market=market,
        usd_per_hour=Decimal(usd),
        on_demand_usd_per_hour=Decimal("30"),
    )


def make_record(**changes: object) -> RunRecord:
    return RunRecord(
        run="demo",
        run_id="demo-1",
        created_at=START,
        code_version="0",
        spec=make_spec(**changes),
        num_steps=10,
        offers=(QuotedOffer.quote(make_offer()),),
        prices_source="a test",
        home_place=("aws", "us-east-1"),
        inputs=(),
        simulated=True,
        threads_per_rank=1,
    )


def make_controller(seconds: float, usd: str | None) -> ControllerSeen:
    """Return the machine that carries out the launch of the run at that instant."""
    return ControllerSeen(
        launched_at=at(seconds),
        cloud="aws",
        region="us-east-1",
        instance_type="m6i.xlarge",
        usd_per_hour=None if usd is None else Decimal(usd),
    )


class Ledger:
    """Collects entries, numbered per writer."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.launched_at = START

    def add(self, seconds: float, body: Fact, writer: str = "supervisor-1") -> None:
        number = sum(1 for entry in self.entries if entry.writer == writer)
        self.entries.append(Entry(writer=writer, number=number, at=at(seconds), body=body))

    def launched(self, seconds: float = 0) -> None:
        self.add(seconds, RunLaunched(host="laptop"), writer="cli-1")
        self.launched_at = at(seconds)

    def amended(self, seconds: float, by: AmendedBy = AmendedBy.RESUME, **sections: object) -> None:
        self.add(seconds, RunAmended(host="laptop", by=by, sections=sections), writer="cli-1")

    def ended(
        self,
        seconds: float,
        state: FinalState = FinalState.SUCCEEDED,
        reason: StopReason = StopReason.DONE,
        why: str = "done",
    ) -> None:
        body = RunEnded(state=state, reason=reason, why=why, launched_at=self.launched_at)
        self.add(seconds, body)

    def launch(
        self,
        name: str,
        seconds: float,
        *,
        until: float | None = None,
        attempt: int | None = None,
        step: int = 0,
        reason: EndReason = EndReason.PREEMPTED,
        offer: Offer | None = None,
    ) -> None:
        """Add a launch that is ready after 1 s and whose attempt starts after 2 s."""
        quoted = QuotedOffer.quote(offer or make_offer())
        self.add(seconds, LaunchStarted(launch=name, offer=quoted, num_nodes=1))
        if reason is not EndReason.NO_CAPACITY:
            self.add(seconds + 1, LaunchReady(launch=name))
        if attempt is not None:
            started = AttemptStarted(
                attempt=attempt, launch=name, world_size=2, step=step, manifest=None, host="node"
            )
            self.add(seconds + 2, started, writer=f"agent-{attempt}")
        if until is not None:
            by = TerminatedBy.CLOUD
            ended = LaunchEnded(launch=name, reason=reason, terminated_by=by, was_watched=True)
            self.add(until, ended)

    def commit(
        self,
        seconds: float,
        attempt: int,
        step: int,
        num_bytes: int = 10**9,
        place: str | None = None,
    ) -> None:
        body = CheckpointCommitted(
            attempt=attempt,
            step=step,
            manifest=f"checkpoints/step-{step:08d}.a{attempt:03d}/manifest.json",
            place=place,
            num_bytes=num_bytes,
            num_objects=2,
        )
        self.add(seconds, body, writer=f"agent-{attempt}")


def make_step(step: int, start: float, seconds: float = 1.0, loss: float = 2.0) -> Step:
    return Step(
        at=at(start + seconds),
        step=step,
        started_at=at(start),
        seconds=seconds,
        loss=loss,
        grad_norm=1.0,
        learning_rate=1e-3,
        num_tokens=100,
        num_trained_tokens=80,
    )


def measured_step(attempt: int, step: int, start: float, **more: float) -> Measured:
    return Measured(attempt=attempt, record=make_step(step, start, **more))


def measured_phase(attempt: int, name: PhaseName, start: float, seconds: float) -> Measured:
    record = Phase(at=at(start + seconds), name=name, started_at=at(start), seconds=seconds)
    return Measured(attempt=attempt, record=record)
