"""The strategy and its attendant on an event loop, with SkyPilot's own launching stood in for."""

from __future__ import annotations

import asyncio
import secrets
import warnings
from datetime import timedelta
from types import SimpleNamespace

import pytest

from checkpoints.errors import StoreRefused, StoreUnreachable
from checkpoints.store import open_store
from orchestrator.attempts import EndReason
from orchestrator.clock import SystemClock
from orchestrator.cloud.skypilot.conductor import Conductor
from orchestrator.cloud.skypilot.environment import EXTRAS
from orchestrator.cloud.skypilot.task import build_task
from orchestrator.cost import bill
from orchestrator.inputs import InputFile
from orchestrator.ledger.facts import (
    AmendedBy,
    AttemptStarted,
    FinalState,
    LaunchEnded,
    LaunchReady,
    LaunchStarted,
    QuotedOffer,
    RunAmended,
    RunLaunched,
    StopRequested,
    TerminatedBy,
)
from orchestrator.ledger.heartbeat import Heartbeat, beat
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.record import create_record
from orchestrator.notify.addresses import NOTIFY
from tests.fault_record import record_fault
from tests.message_service import SECRET, receiving
from tests.orchestrator.histories import make_offer, make_record

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what SkyPilot and its libraries say when they are imported
    import sky
    from sky import exceptions
    from sky.jobs import state
    from sky.utils import dag_utils

    from orchestrator.cloud.skypilot import attendant, clusters, strategy
    from orchestrator.cloud.skypilot.job import Job, patiently

RUNNING, SUCCEEDED = state.ManagedJobStatus.RUNNING, state.ManagedJobStatus.SUCCEEDED
NO_ROOM = exceptions.ResourcesUnavailableError(
    "refused", failover_history=[exceptions.ResourcesUnavailableError("no room in us-east-1")]
)
NO_ACCESS = exceptions.ResourcesUnavailableError("nothing is enabled")


# What SkyPilot and clouds say, as SkyPilot puts it into its error.
IN_ONE_PLACE = (
    "Failed to acquire resources in all zones in us-east-1 for {{AWS(p4de)}}.\nReason: {}"
)
OVER_QUOTA = [
    "MaxSpotInstanceCountExceeded: Max spot instance count exceeded",
    "VcpuLimitExceeded: You have requested more vCPU capacity than your current limit",
    "QUOTA_EXCEEDED: Quota 'GPUS_ALL_REGIONS' exceeded. Limit: 1.0 globally.",
    "(QuotaExceeded) Operation could not be completed as it results in exceeding approved Total "
    "Regional Cores quota",
    "Found no quota for p4de.24xlarge spot instances in region us-east-1 in AWS.",
]
NO_ACCOUNT = [
    "An error occurred (UnauthorizedOperation) when calling the RunInstances operation",
    "An error occurred (AuthFailure) when calling RunInstances: not able to validate the provided",
    "An error occurred (InvalidClientTokenId): the security token included in the request",
    "Failed to provision on cloud AWS due to invalid cloud credentials: expired",
    "IAM_PERMISSION_DENIED: Required 'compute.instances.create' permission",
    "(AuthorizationFailed) The client does not have authorization to perform action",
]
ROOM_ELSEWHERE = [
    "InsufficientInstanceCapacity: We currently do not have sufficient p4de capacity",
    "ZONE_RESOURCE_POOL_EXHAUSTED: The zone does not have enough resources available",
    "(SkuNotAvailable) The requested VM size is currently not available",
    "Location us-east1-d is not found or access is unauthorized.",
]


def refused(*reasons):
    """Return the error of a launch that failed for these reasons, one place each."""
    said = [exceptions.ResourcesUnavailableError(IN_ONE_PLACE.format(one)) for one in reasons]
    return exceptions.ResourcesUnavailableError("no resources", failover_history=said)


@pytest.fixture
def store():
    store = open_store(f"memory://{secrets.token_hex(8)}")
    create_record(store, make_record(infra=["aws"], local=None, store="s3://bucket/runs"))
    Journal(store, "cli", SystemClock()).note(RunLaunched(host="laptop"))
    return store


@pytest.fixture
def skypilot(monkeypatch):
    """What SkyPilot would say: the job's status, and whether the cluster is there."""
    said = SimpleNamespace(status=RUNNING, has_cluster=False, terminated=0)

    async def status(job_id, task_id):
        return said.status

    monkeypatch.setattr(state, "get_job_status_with_task_id_async", status)
    monkeypatch.setattr(
        attendant.global_user_state,
        "get_handle_from_cluster_name",
        lambda name: object() if said.has_cluster else None,
    )
    monkeypatch.setattr(strategy, "count_instances", lambda name: 0)
    monkeypatch.setattr(strategy, "resources_for", lambda offer, requested, tags: requested)
    monkeypatch.setattr("orchestrator.cloud.skypilot.job.up_since", lambda name, since: None)
    return said


class Strategy(strategy.OrchestrateStrategy):
    """Ours, whose launches end as `outcomes` say: a number, an error, or for ever."""

    tick_seconds = 0.01
    RETRY_INIT_GAP_SECONDS = 0
    offers = (make_offer("us-east-1", usd="8"), make_offer("us-west-2", usd="9"))

    def __init__(self, store, outcomes, said):
        task = SimpleNamespace(resources={"any"}, num_nodes=1, secrets={})
        task.set_resources, task.update_envs = lambda _: None, lambda _: None
        self.dag = SimpleNamespace(tasks=[task])
        self.job_id, self.task_id, self.cluster_name = secrets.randbits(30), 0, "run-1"
        self._job, self._attendant = None, None
        self._store, self._outcomes, self._said = store, list(outcomes), said

    def _make_conductor(self):
        return Conductor(self._store, "job-1", SystemClock(), lambda spec: self.offers)

    async def _launch(self, max_retry, raise_on_failure, recovery):
        outcome = self._outcomes.pop(0)
        if outcome == "for ever":
            await asyncio.Event().wait()
        if isinstance(outcome, Exception):
            self._job.underway.error = outcome
            return None
        return outcome

    def _cleanup_cluster(self):
        self._said.terminated += 1


def conductor_of(executor: Strategy) -> Conductor:
    return Conductor(executor._store, "reader", SystemClock(), lambda spec: ())


def launches(executor: Strategy) -> list[tuple[str, EndReason | None]]:
    seen = conductor_of(executor).state().launches
    return [(one.offer.region, one.reason) for one in seen]


def test_no_room_in_one_place_is_asked_for_in_the_next(store, skypilot):
    executor = Strategy(store, [NO_ROOM, 1.0], skypilot)
    assert asyncio.run(executor.launch()) == 1.0
    assert launches(executor) == [("us-east-1", EndReason.NO_CAPACITY), ("us-west-2", None)]


@pytest.mark.parametrize("error", [NO_ACCESS, ValueError("bad resources"), OSError("no server")])
def test_what_would_fail_anywhere_is_no_lack_of_room(store, skypilot, error):
    executor = Strategy(store, [error] * 3, skypilot)
    with pytest.raises(exceptions.ManagedJobReachedMaxRetriesError, match="3 launches in a row"):
        asyncio.run(executor.launch())
    assert [reason for _, reason in launches(executor)] == [EndReason.SETUP_FAILED] * 3
    ended = conductor_of(executor).state().ended
    assert ended is not None
    assert ended.state is FinalState.FAILED


def test_only_a_refusal_by_a_cloud_is_a_lack_of_room():
    assert clusters.why_refused(NO_ROOM) is clusters.Refusal.NO_ROOM
    others = (NO_ACCESS, ValueError("x"), None)
    assert {clusters.why_refused(error) for error in others} == {clusters.Refusal.OTHER}


@pytest.mark.parametrize("reason", OVER_QUOTA)
def test_an_account_s_quota_is_no_room_here_and_is_named(store, skypilot, reason):
    executor = Strategy(store, [refused(reason), 1.0], skypilot)
    assert asyncio.run(executor.launch()) == 1.0
    assert launches(executor) == [("us-east-1", EndReason.NO_CAPACITY), ("us-west-2", None)]
    vain = conductor_of(executor).state().launches[0]
    assert vain.detail.startswith("over the account's quota: ")
    record_fault("F24", "a quota is used up", injected=told(executor, "over the account's quota"))


@pytest.mark.parametrize("reason", [*NO_ACCOUNT, exceptions.CloudUserIdentityError("no key")])
def test_an_account_that_is_refused_ends_the_job_soon_and_is_named(store, skypilot, reason):
    error = refused(reason)
    if isinstance(reason, Exception):
        error.failover_history = [reason]
    executor = Strategy(store, [error] * 3, skypilot)
    with pytest.raises(exceptions.ManagedJobReachedMaxRetriesError, match="refused 3 times in a"):
        asyncio.run(executor.launch())
    assert [one for _, one in launches(executor)] == [EndReason.NO_ACCESS] * 3
    num_told = told(executor, "the account is refused")
    assert num_told == 3
    record_fault("F24", "a cloud refuses the account", injected=num_told)


@pytest.mark.parametrize("reason", NO_ACCOUNT)
def test_an_account_that_one_cloud_refuses_is_no_end_where_another_has_room(
    store, skypilot, reason
):
    executor = Strategy(store, [refused(reason), NO_ROOM, 1.0], skypilot)
    google = (make_offer(region, usd="9", cloud="gcp") for region in ("us-east4", "us-central1"))
    executor.offers = (make_offer("us-east-1", usd="8"), make_offer("us-west-2", usd="8"), *google)
    assert asyncio.run(executor.launch()) == 1.0
    assert launches(executor) == [
        ("us-east-1", EndReason.NO_ACCESS),
        ("us-central1", EndReason.NO_CAPACITY),
        ("us-east4", None),
    ]
    num_told = told(executor, "the account is refused")
    assert num_told == 1
    record_fault("F24", "a cloud refuses the account, another does not", injected=num_told)


@pytest.mark.parametrize("reason", ROOM_ELSEWHERE)
def test_missing_room_is_asked_for_elsewhere_also_beside_a_quota(store, skypilot, reason):
    for error in (refused(reason), refused(OVER_QUOTA[0], reason), refused(NO_ACCOUNT[0], reason)):
        assert clusters.why_refused(error) is clusters.Refusal.NO_ROOM
    executor = Strategy(store, [refused(reason), 1.0], skypilot)
    assert asyncio.run(executor.launch()) == 1.0
    ends = [one for _, one in launches(executor)]
    assert ends == [EndReason.NO_CAPACITY, None]
    record_fault("F24", "no room in one place", injected=ends.count(EndReason.NO_CAPACITY))


def told(executor: Strategy, words: str) -> int:
    """Return how many launches ended for a reason that begins so."""
    seen = conductor_of(executor).state().launches
    return sum((one.detail or "").startswith(words) for one in seen)


def test_a_budget_that_is_reached_calls_a_launch_off_and_ends_the_run(store, skypilot):
    """It is lowered below what earlier nodes took: those that are brought up cost nothing yet."""
    began = SystemClock().now() - timedelta(hours=2)
    quoted = QuotedOffer.quote(make_offer("us-east-1", usd="8"))
    earlier = [
        (0, LaunchStarted(launch="first", offer=quoted, num_nodes=1)),
        (1, LaunchReady(launch="first")),
        (
            3601,
            LaunchEnded(
                launch="first", reason=EndReason.PREEMPTED, terminated_by=TerminatedBy.CLOUD
            ),
        ),
    ]
    for second, fact in earlier:
        then = SimpleNamespace(now=lambda second=second: began + timedelta(seconds=second))
        Journal(store, "earlier", then).note(fact)
    executor = Strategy(store, ["for ever"], skypilot)

    async def use_it_up():
        running = asyncio.create_task(executor.launch())
        while len(launches(executor)) < 2:
            await asyncio.sleep(0.01)
        sections = {"limits": {"budget_usd": "5"}}
        amended = RunAmended(host="laptop", by=AmendedBy.RESUME, sections=sections)
        Journal(store, "cli", SystemClock()).note(amended)
        await running

    with pytest.raises(exceptions.ManagedJobReachedMaxRetriesError, match="takes the rest of"):
        asyncio.run(use_it_up())
    assert [reason for _, reason in launches(executor)] == [EndReason.PREEMPTED, EndReason.STOPPED]
    assert skypilot.terminated > 0
    called_off = [one for one in conductor_of(executor).state().launches if one.ready_at is None]
    parts = bill(conductor_of(executor).state(), SystemClock().now())
    of_nodes = parts.compute + parts.failed_launches
    assert of_nodes == 8  # nothing of those that were called off
    record_fault(
        "F23",
        "a budget is reached while nodes are brought up",
        injected=len(called_off),
        usd_unaccounted=abs(of_nodes - 8),
    )


def test_a_stop_calls_a_launch_off(store, skypilot):
    executor = Strategy(store, ["for ever"], skypilot)

    async def stop_soon():
        running = asyncio.create_task(executor.launch())
        while not launches(executor):
            await asyncio.sleep(0.01)
        seen = conductor_of(executor).state()
        stop = StopRequested(host="laptop", launched_at=seen.launched_at)
        Journal(store, "cli", SystemClock()).note(stop)
        await running

    with pytest.raises(exceptions.ManagedJobReachedMaxRetriesError, match="a stop was requested"):
        asyncio.run(stop_soon())
    assert launches(executor) == [("us-east-1", EndReason.STOPPED)]
    assert skypilot.terminated > 0


def test_a_cancelled_job_launches_nothing_more(store, skypilot):
    executor = Strategy(store, ["for ever", 1.0], skypilot)

    async def cancel_soon():
        running = asyncio.create_task(executor.launch())
        while not launches(executor):
            await asyncio.sleep(0.01)
        skypilot.status = state.ManagedJobStatus.CANCELLING
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        while conductor_of(executor).state().ended is None:  # the attendant's to write
            await asyncio.sleep(0.01)

    asyncio.run(cancel_soon())
    assert launches(executor) == [("us-east-1", EndReason.STOPPED)]


def test_the_last_facts_survive_a_store_that_refuses_for_a_while(store, skypilot, monkeypatch):
    monkeypatch.setattr("orchestrator.cloud.skypilot.job._STORE_RETRY_S", 0.01)
    executor = Strategy(store, [1.0], skypilot)
    refusals = iter([StoreRefused("denied", "ask")] * 3)
    gone = Conductor.gone

    def refusing(self, loss):
        if skypilot.status is SUCCEEDED and (error := next(refusals, None)) is not None:
            raise error
        gone(self, loss)

    monkeypatch.setattr(Conductor, "gone", refusing)

    async def succeed():
        await executor.launch()
        skypilot.status = SUCCEEDED
        while conductor_of(executor).state().ended is None:
            await asyncio.sleep(0.01)

    asyncio.run(succeed())
    assert next(refusals, None) is None
    ended = conductor_of(executor).state().ended
    assert ended is not None
    assert ended.state is FinalState.SUCCEEDED


def test_a_restarted_controller_bears_a_store_that_refuses_for_a_while(
    store, skypilot, monkeypatch
):
    monkeypatch.setattr("orchestrator.cloud.skypilot.job._STORE_RETRY_S", 0.01)
    executor = Strategy(store, [], skypilot)
    refusals = iter([StoreRefused("denied", "ask")] * 3)
    make = executor._make_conductor

    def refusing():
        if (error := next(refusals, None)) is not None:
            raise error
        return make()

    executor._make_conductor = refusing
    asyncio.run(executor.on_resume("run-1"))
    assert executor._attendant is not None


@pytest.fixture
def training(store, skypilot, monkeypatch):
    """A strategy whose node trains, and what makes its agent speak once."""
    executor = Strategy(store, [1.0, 1.0], skypilot)
    asyncio.run(executor.launch())
    (launch,) = conductor_of(executor).state().launches
    started = AttemptStarted(
        attempt=1, launch=launch.launch, world_size=2, step=0, manifest=None, host="node"
    )
    Journal(store, "agent-000001", SystemClock()).note(started)

    def speak():
        now = SystemClock().now()
        beat(store, Heartbeat(writer="agent-000001", at=now, host="node", pid=1, attempt=1))

    speak()
    return executor, speak


def test_nodes_that_only_skypilot_cannot_see_train_on(training, skypilot, monkeypatch):
    executor, speak = training
    monkeypatch.setattr(strategy, "count_instances", lambda name: 1)

    async def recover():
        recovering = asyncio.create_task(executor.recover())
        while not recovering.done():
            await asyncio.sleep(0.005)
            speak()

    asyncio.run(recover())
    assert skypilot.terminated == 0
    assert launches(executor) == [("us-east-1", None)]


@pytest.mark.parametrize(("num_alive", "speaks"), [(1, False), (0, True)])
def test_nodes_that_are_silent_or_gone_are_replaced(
    training, skypilot, monkeypatch, num_alive, speaks
):
    executor, speak = training
    monkeypatch.setattr(strategy, "count_instances", lambda name: num_alive)
    if speaks:
        speak()
    asyncio.run(executor.recover())
    assert skypilot.terminated > 0
    assert launches(executor) == [("us-east-1", EndReason.NODE_LOST), ("us-west-2", None)]


def test_nodes_of_which_the_cloud_knows_are_billed_until_we_end_them(
    training, skypilot, monkeypatch
):
    executor, _ = training
    monkeypatch.setattr(strategy, "count_instances", lambda name: 1)
    asyncio.run(executor._terminate())
    monkeypatch.setattr(strategy, "count_instances", lambda name: 0)
    asyncio.run(executor.recover())
    ended = conductor_of(executor).state().launches[0]
    assert (ended.reason, ended.terminated_by) == (EndReason.NODE_LOST, TerminatedBy.US)


def test_a_refusal_after_a_long_silence_is_borne(monkeypatch):
    seconds = iter([0.0, 100.0, 200.0, 1000.0, 1100.0])
    clock = SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr("orchestrator.cloud.skypilot.job.time", clock)
    monkeypatch.setattr("orchestrator.cloud.skypilot.job._STORE_RETRY_S", 0.0)
    silent, refused = StoreUnreachable("no answer", "wait"), StoreRefused("denied", "ask")
    said = iter([silent, silent, refused, refused, None])

    def act():
        if (error := next(said)) is not None:
            raise error
        return "an answer"

    assert asyncio.run(patiently(act)) == "an answer"


def test_a_store_that_goes_on_refusing_ends_the_job(store, skypilot, monkeypatch):
    monkeypatch.setattr("orchestrator.cloud.skypilot.job._REFUSAL_PATIENCE_S", 0.0)
    executor = Strategy(store, [], skypilot)

    def refuse():
        raise StoreRefused("denied", "ask")

    executor._make_conductor = refuse
    with pytest.raises(exceptions.ProvisionPrechecksError):
        asyncio.run(executor.launch())


def test_the_controller_tells_the_end_with_the_task_s_secret(store, skypilot, caplog):
    """The address comes back from the YAML that SkyPilot keeps of a job, and shows nowhere."""
    tracking = {"notify": {"on": ["finish"]}}
    amended = RunAmended(host="laptop", by=AmendedBy.RESUME, sections={"tracking": tracking})
    Journal(store, "cli", SystemClock()).note(amended)
    executor = Strategy(store, [1.0], skypilot)

    async def succeed(service):
        task = sky.Task(run="true", secrets={NOTIFY: service.address})
        executor.dag.tasks[0].secrets = reloaded(task).secrets
        await executor.launch()
        skypilot.status = SUCCEEDED
        while not service.titles:
            await asyncio.sleep(0.01)

    caplog.set_level(1)
    with receiving() as service:
        asyncio.run(succeed(service))
    assert service.titles == ["demo: finished"]
    assert SECRET not in caplog.text


def reloaded(task):
    """Return a task as a controller has it, after its job was submitted or it was restarted."""
    with sky.Dag() as dag:
        dag.add(task)
    dag.name = "demo"
    stored = dag_utils.dump_chain_dag_to_yaml_str(dag)
    return dag_utils.load_dag_from_yaml_str(stored).tasks[0]


@pytest.mark.parametrize("has_strategy", [True, False])
def test_addresses_are_a_secret_of_the_task_and_nodes_get_apprise_only_to_send(has_strategy):
    record = make_record(infra=["aws"], local=None, store="s3://bucket/runs")
    wheel = InputFile(name="x.whl", sha256="0" * 64, size=1)
    shared = {"launched_at": record.created_at, "has_strategy": has_strategy}
    told = build_task(record, wheel, [make_offer()], **shared, addresses=f"slack://{SECRET}")
    untold = build_task(record, wheel, [make_offer()], **shared)
    assert NOTIFY not in untold.secrets
    assert untold.envs[EXTRAS] == "train"
    assert told.secrets[NOTIFY].get_secret_value() == f"slack://{SECRET}"
    assert told.envs[EXTRAS] == ("train" if has_strategy else "train,notify")
    assert SECRET not in str(told.to_yaml_config(use_user_specified_yaml=True))


def test_an_attendant_that_died_is_replaced(store, skypilot):
    executor = Strategy(store, [1.0], skypilot)

    async def lose_it():
        await executor.launch()
        first = executor._attendant
        first.dismiss()
        await asyncio.sleep(0)
        await executor.monitor_task()
        return first is not executor._attendant and executor._attendant.is_alive

    assert asyncio.run(lose_it())


def test_nodes_are_terminated_also_where_the_cloud_cannot_be_asked(store, skypilot, monkeypatch):
    def fail(name):
        raise OSError("throttled")

    ended = []
    parent = strategy.recovery_strategy.StrategyExecutor
    monkeypatch.setattr(strategy, "count_instances", fail)
    monkeypatch.setattr(parent, "_cleanup_cluster", lambda self: ended.append(self.cluster_name))
    executor = Strategy(store, [], skypilot)
    executor._job = Job(executor._make_conductor(), 1, 0, "run-1")
    executor._job.underway = SimpleNamespace(num_alive=None)
    strategy.OrchestrateStrategy._cleanup_cluster(executor)
    assert ended == ["run-1"]
