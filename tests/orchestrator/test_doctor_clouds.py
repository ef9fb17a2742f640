"""What doctor makes of an API server's answers, and of the account's quotas."""

import pytest

from checkpoints.store import open_store
from orchestrator.cloud.skypilot.checks import Answers, Job, Server
from orchestrator.doctor_clouds import quota_findings, server_findings
from orchestrator.home import run_home
from orchestrator.ledger.record import create_record
from orchestrator.offers import list_offers
from orchestrator.prices import price_table
from orchestrator.runs import remember_run
from orchestrator.spec_file import load_spec
from orchestrator.strays import RunEnd, end_of_run, find_strays
from tests.ec2_service import ec2_service
from tests.orchestrator.histories import Ledger, make_record
from tests.orchestrator.test_catalog import catalog  # noqa: F401  # a fixture
from tests.orchestrator.test_doctor import CLOUD

CLOUDS = ("aws", "gcp")


def server(status="healthy", *, is_local=True):
    return Server(url="http://here", is_local=is_local, status=status, version="0.14.1", error=None)


def healthy(**changes):
    given = {"enabled": CLOUDS, "plugins": ("orchestrate",), "jobs": (), "clusters": ()}
    return Answers(server=server(), errors={}, **{**given, **changes})


def verdicts(answers, stores=()):
    return {
        finding.check: (finding.verdict.value, finding.what, finding.next_step)
        for finding in server_findings(CLOUDS, stores, answers)
    }


def test_all_is_well():
    found = verdicts(healthy())
    assert set(found) == {"server", "clouds", "plugin", "strays"}
    assert {verdict for verdict, *_ in found.values()} == {"ok"}


@pytest.mark.parametrize(
    ("found", "verdict", "step"),
    [
        (server("unhealthy"), "warning", "sky api start"),
        (server("unhealthy", is_local=False), "failed", "sky api info"),
        (server("needs_auth", is_local=False), "failed", "sky api login"),
        (server("version_mismatch"), "failed", "sky api stop; sky api start"),
        (None, "failed", "sky api info"),
    ],
)
def test_a_server_that_is_not_well_says_what_to_do(found, verdict, step):
    answers = Answers(server=found, errors={"server": "no answer within 60 s"})
    ((actual, _, next_step),) = verdicts(answers).values()
    assert actual == verdict
    assert step in next_step


def test_clouds_that_skypilot_may_not_use():
    assert verdicts(healthy(enabled=("aws", "azure")))["clouds"][2] == "sky check gcp"
    assert verdicts(healthy(enabled=()))["clouds"][0] == "failed"


def test_a_plugin_that_is_not_loaded_and_a_question_without_an_answer():
    assert "doctor --fix" in verdicts(healthy(plugins=()))["plugin"][2]
    found = Answers(server=server(), errors={"jobs": "no answer within 60 s"})
    assert verdicts(found)["server"] == ("warning", "jobs: no answer within 60 s", "sky api logs")


@pytest.fixture
def ended_run(tmp_path):
    """A run folder that says that its run has ended; returns the run's id."""
    url = (tmp_path / "store").as_uri()
    folder = open_store(f"{url}/demo")
    record = make_record(store=url).model_copy(update={"run_id": "demo-0123abcd"})
    create_record(folder, record)
    ledger = Ledger()
    ledger.launched()
    ledger.ended(50)
    for entry in ledger.entries:
        key = f"events/{entry.writer}/{entry.number:08d}.jsonl"
        folder.create(key, entry.model_dump_json().encode())
    remember_run(run_home(url, "demo"), "demo", url)
    return record.run_id


def test_what_runs_for_a_run_that_has_ended_is_named_with_its_end(ended_run):
    answers = healthy(jobs=(Job(number=7, name=ended_run),), clusters=(f"{ended_run}-12",))
    found = [f for f in server_findings(CLOUDS, (), answers) if f.check == "strays"]
    assert [f.next_step for f in found] == ["sky jobs cancel -y 7", f"sky down -y {ended_run}-12"]
    assert "its run is ended" in found[0].what


def test_a_later_run_of_the_name_makes_the_earlier_a_stray(ended_run):
    assert end_of_run("demo", "demo-00000000") is RunEnd.GONE
    assert end_of_run("demo", ended_run) is RunEnd.ENDED


def test_what_nobody_here_knows_is_left_alone():
    names = ["other-0123abcd", "demo", "demo-0123abc", "mine-0123ABCD"]
    found = find_strays(enumerate(names), names, lambda name, run_id: end_of_run(name, run_id))
    assert list(found) == []


def test_a_run_that_goes_on_is_no_stray():
    asked = []

    def end_of(name, run_id):
        asked.append((name, run_id))
        return RunEnd.GOING_ON

    assert list(find_strays([(1, "a-b-0123abcd")], ["a-b-0123abcd-3"], end_of)) == []
    assert asked == [("a-b", "a-b-0123abcd")] * 2


@pytest.fixture
def quotas(catalog, monkeypatch):  # noqa: F811
    text = "InstanceType,SpotInstanceCode,OnDemandInstanceCode\np4de.24xlarge,L-SPOT,L-OD\n"
    (catalog / "aws" / "instance_quota_mapping.csv").write_text(text)
    with ec2_service() as service:
        monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
        for name in ("EC2", "SERVICE_QUOTAS", "S3"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{name}", service.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        yield service


def test_quotas_are_compared_with_what_the_nodes_need(quotas):
    quotas.quotas = {("us-east-1", "L-SPOT"): 200.0, ("us-west-2", "L-SPOT"): 96.0}
    spec = load_spec(CLOUD, ["nodes.count=2", "limits.market=spot"])
    table, kinds = price_table(spec, offline=True), spec.nodes.accelerators
    offers = list_offers(table, kinds, spec.clouds, spec.limits.market)
    found = [(finding.verdict.value, finding.what) for finding in quota_findings(spec, offers)]
    need = "2 x p4de.24xlarge spot needs 192 vCPUs of L-SPOT"
    assert found == [
        ("ok", "not checked on gcp, azure, lambda: a launch finds out"),
        ("ok", f"{need}; there is that much in us-east-1"),
        ("warning", f"{need}; too little in us-west-2 (96)"),
    ]
