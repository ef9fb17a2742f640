"""`cost RUN --reconcile aws`: a real boto3 client, and Cost Explorer's protocol on loopback."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest

from orchestrator.billing.cost_explorer import period
from orchestrator.ledger.facts import BillRead
from orchestrator.ledger.journal import LedgerReader
from tests.cost_explorer_service import Billed, cost_explorer
from tests.orchestrator.billing.runs import RUN_ID, days_ago, make_run


@pytest.fixture
def aws(monkeypatch):
    with cost_explorer() as service:
        monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL_COST_EXPLORER", service.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        yield service


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, started_at=days_ago(6))


def billed(usage_type, usd, *, run=RUN_ID, days=6, **more):
    return Billed(run=run, day=days_ago(days).date(), usage_type=usage_type, usd=usd, **more)


def ask(orchestrate, *more):
    code, out, err = orchestrate("cost", "demo", "--reconcile", "aws", "--yes", "--json", *more)
    assert code == 0, err
    return json.loads(out)


def facts(store):
    return [one.body for one in LedgerReader(store).read() if isinstance(one.body, BillRead)]


def test_compute_disks_and_traffic_are_compared_or_shown(aws, run, orchestrate):
    aws.lines = [
        billed("USW2-SpotUsage:p4de.24xlarge", "19.5", hours="1.95"),
        billed("USW2-EBS:VolumeUsage.gp3", "0.4", hours="5", unit="GB-Mo"),
        billed("USW2-USE1-AWS-Out-Bytes", "0.25", hours="12", unit="GB"),
        billed("USW2-PublicIPv4:InUseAddress", "0.01", hours="2"),
        billed("USW2-SpotUsage:p4de.24xlarge", "-5", record_type="Credit"),
        billed("USW2-SpotUsage:p4de.24xlarge", "99", run="other-1", hours="9"),
    ]
    before = json.loads(orchestrate("cost", "demo", "--json")[1])
    document = ask(orchestrate)
    (found,) = document["reconciliation"]["clouds"]
    assert found["parts"]["compute"] == {
        "computed_usd": 20.0,
        "billed_usd": 19.5,
        "difference_usd": -0.5,
        "difference_fraction": -0.025,
    }
    # What is saved leaves the nodes; what is restored leaves the bucket, which has no tag.
    assert found["parts"]["egress"]["computed_usd"] == 0.2
    billed_usd = {name: part["billed_usd"] for name, part in found["parts"].items()}
    assert billed_usd == {
        "compute": 19.5,
        "disks": 0.4,
        "egress": 0.25,
        "other": 0.01,
        "credits": -5,
    }
    assert found["parts"]["disks"]["difference_usd"] is None
    assert found["billed_usd"] == pytest.approx(15.16)
    assert found["instance_hours"]["computed_hours"] == 2.0
    assert found["instance_hours"]["billed_hours"] == 1.95
    assert found["not_in_bill"] == ["storage", "requests"]
    assert (found["is_whole_run"], found["is_last_day_incomplete"]) == (True, False)
    assert before["reconciliation"] is None
    assert (document["parts"], document["total_usd"]) == (before["parts"], before["total_usd"])


def test_what_was_read_is_a_fact_that_others_see(aws, run, orchestrate):
    aws.lines = [billed("BoxUsage:p4de.24xlarge", "20.000000123", hours="2")]
    ask(orchestrate)
    aws.lines = [billed("BoxUsage:p4de.24xlarge", "21", hours="2")]
    ask(orchestrate)
    assert [bill.usd["compute"] for bill in facts(run)] == [Decimal("20.000000"), Decimal(21)]
    code, out, _ = orchestrate("cost", "demo")
    assert code == 0
    assert "What aws billed by Cost Explorer, read 20" in out
    line = next(one for one in out.splitlines() if "+$1.0000" in one)
    assert line.split() == ["compute", "$20.0000", "$21.0000", "+$1.0000", "(+5.0%)"]
    assert "Not in it: storage, requests" in out
    assert len(aws.asked) == 2  # to look again asks nobody


def test_pages_are_followed_and_what_is_asked_is_what_costs_least(aws, run, orchestrate):
    aws.days_per_page = 3
    aws.lines = [billed("SpotUsage:p4de.24xlarge", "1.25", days=days) for days in range(7)]
    (found,) = ask(orchestrate)["reconciliation"]["clouds"]
    assert found["parts"]["compute"]["billed_usd"] == 8.75
    assert (len(aws.asked), found["num_lines"]) == (3, 7)
    asked = aws.asked[0]
    assert asked["Metrics"] == ["UnblendedCost", "UsageQuantity"]
    assert asked["Filter"]["Tags"]["Values"] == [RUN_ID]
    tomorrow = days_ago(-1).date()
    expected = {"Start": str(days_ago(6).date()), "End": str(tomorrow)}
    assert asked["TimePeriod"] == expected == {"Start": found["start"], "End": found["end"]}


def test_pages_without_an_end_are_not_paid_for(aws, run, orchestrate):
    aws.is_endless = True
    code, _, err = orchestrate("cost", "demo", "--reconcile", "aws", "--yes")
    assert code == 3
    assert "more than 50 pages" in err
    assert len(aws.asked) == 50
    assert facts(run) == []


def test_throttling_is_waited_out_a_few_times(aws, run, orchestrate):
    aws.lines = [billed("SpotUsage:p4de.24xlarge", "20")]
    aws.failures = ["ThrottlingException", "LimitExceededException"]
    (found,) = ask(orchestrate)["reconciliation"]["clouds"]
    assert found["parts"]["compute"]["billed_usd"] == 20
    assert len(aws.asked) == 3


@pytest.mark.parametrize(
    ("failures", "words", "num_asked"),
    [
        (["AccessDeniedException"], "AWS does not let these credentials", 1),
        (["DataUnavailableException"], "no data of this account yet", 1),
        (["ValidationException"], r"ValidationException: 'ValidationException, said\nAWS'", 1),
        (["ThrottlingException"] * 9, "ThrottlingException", 4),
    ],
)
def test_a_refusal_is_one_line_and_leaves_no_fact(
    aws, run, orchestrate, failures, words, num_asked
):
    aws.failures = failures
    code, out, err = orchestrate("cost", "demo", "--reconcile", "aws", "--yes")
    assert (code, out) == (3, "")
    *_, what, next_step = err.strip().splitlines()
    assert words in what
    assert next_step
    assert len(aws.asked) == num_asked
    assert facts(run) == []


def test_no_credentials_is_one_line(aws, run, orchestrate, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    code, _, err = orchestrate("cost", "demo", "--reconcile", "aws", "--yes")
    assert code == 3
    assert "There are no credentials for AWS here: NoCredentialsError." in err
    assert aws.asked == []
    monkeypatch.setenv("AWS_PROFILE", "gone")
    code, _, err = orchestrate("cost", "demo", "--reconcile", "aws", "--yes")
    assert (code, aws.asked) == (3, [])
    assert "ProfileNotFound" in err


def test_nothing_is_spent_unasked(aws, run, orchestrate):
    code, _, err = orchestrate("cost", "demo", "--reconcile", "aws")
    assert code == 2
    assert "add --yes" in err
    assert aws.asked == []


def test_no_other_service_is_asked_for_the_bill(aws, run, orchestrate, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL_COST_EXPLORER")
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint)
    code, _, err = orchestrate("cost", "demo", "--reconcile", "aws", "--yes")
    assert code == 2
    assert "AWS_ENDPOINT_URL is set" in err
    assert aws.asked == []


def test_another_currency_is_refused(aws, run, orchestrate):
    aws.currency = "EUR"
    aws.lines = [billed("SpotUsage:p4de.24xlarge", "20")]
    code, _, err = orchestrate("cost", "demo", "--reconcile", "aws", "--yes")
    assert code == 2
    assert "'EUR'" in err
    assert facts(run) == []


def test_no_line_at_all_says_why_and_is_no_fact(aws, run, orchestrate):
    code, out, err = orchestrate("cost", "demo", "--reconcile", "aws", "--yes")
    assert code == 0
    assert f"no line with the tag orchestrate-run={RUN_ID}" in err
    assert "cost allocation tag" in err
    assert "24 h" in err
    assert "billed by" not in out
    assert facts(run) == []


def test_invoiced_lines_are_final(aws, run, orchestrate):
    aws.is_estimated = False
    aws.lines = [billed("SpotUsage:p4de.24xlarge", "20")]
    (found,) = ask(orchestrate)["reconciliation"]["clouds"]
    assert found["is_final"]


def test_the_last_day_of_a_run_that_ended_today_may_be_incomplete(aws, tmp_path, orchestrate):
    now = datetime.now(timezone.utc)
    make_run(tmp_path, started_at=now - timedelta(hours=5))
    aws.lines = [Billed(run=RUN_ID, day=now.date(), usage_type="SpotUsage:p4de.24xlarge", usd="20")]
    (found,) = ask(orchestrate)["reconciliation"]["clouds"]
    assert found["is_last_day_incomplete"]
    assert "The last day may be incomplete" in orchestrate("cost", "demo")[1]


@pytest.mark.parametrize("today", [28, 29, 30, 31])
def test_the_end_is_never_past_the_first_of_the_next_month(today):
    now = datetime(2026, 10, today, 23, 59, tzinfo=timezone.utc)
    _, end = period(now - timedelta(days=3), None, now)
    assert end <= datetime(2026, 11, 1, tzinfo=timezone.utc).date()


def test_what_was_left_behind_is_looked_for_a_month_after_the_end():
    now = datetime(2026, 11, 29, tzinfo=timezone.utc)
    start, end = period(now - timedelta(days=90), now - timedelta(days=80), now)
    assert (end - start).days == 10 + 31 + 1
