"""What the trainer is told of the run's preemptions so far."""

from orchestrator.agent.hazard import run_hazard
from orchestrator.attempts import EndReason
from orchestrator.ledger.facts import LaunchEnded, TerminatedBy
from orchestrator.ledger.fold import fold
from orchestrator.offers import Market
from tests.orchestrator.histories import Ledger, make_offer, make_record
from train.config import RunHazard

RECORD = make_record()


def test_a_new_run_has_seen_nothing():
    assert run_hazard(fold(RECORD, [])) == RunHazard(time_scale=60.0)


def test_lost_nodes_are_counted_and_every_ended_launch_is_exposure():
    ledger = Ledger()
    ledger.launch("taken", 0, until=101, attempt=1)
    ledger.launch("silent", 200, until=231, attempt=2, reason=EndReason.NODE_LOST)
    ledger.launch("failed", 300, until=311, attempt=3, reason=EndReason.TRAINING_FAILED)
    ledger.launch("ours", 400, attempt=4)
    hazard = run_hazard(fold(RECORD, ledger.entries))
    assert hazard.num_preemptions == 2
    assert hazard.exposure_seconds == (100.0, 30.0, 10.0)


def test_launches_that_say_nothing_of_spot_nodes_do_not_count():
    ledger = Ledger()
    ledger.launch("never up", 0, until=50, reason=EndReason.NO_CAPACITY)
    ledger.launch("on demand", 100, until=201, offer=make_offer(market=Market.ON_DEMAND))
    assert run_hazard(fold(RECORD, ledger.entries)) == RunHazard(time_scale=60.0)


def test_nodes_that_we_ended_were_not_preempted():
    ledger = Ledger()
    ledger.launch("ours", 0, attempt=1)
    ledger.add(
        61,
        LaunchEnded(
            launch="ours", reason=EndReason.NODE_LOST, terminated_by=TerminatedBy.US, detail=None
        ),
    )
    hazard = run_hazard(fold(RECORD, ledger.entries))
    assert (hazard.num_preemptions, hazard.exposure_seconds) == (0, (60.0,))
