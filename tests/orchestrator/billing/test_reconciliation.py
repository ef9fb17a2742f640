"""What was computed beside what was billed: only as far as the cloud's bill can hold it."""

from __future__ import annotations

import json
import random
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.store import open_store
from orchestrator.billing.kinds import BillKind
from orchestrator.clock import SystemClock
from orchestrator.dashboard.content import build_page
from orchestrator.ledger.facts import (
    SCHEMA_VERSION,
    BillRead,
    Entry,
    NoticeReceived,
    RunLaunched,
)
from orchestrator.ledger.fold import fold
from orchestrator.reconciliation import reconciliation_document
from orchestrator.view import RunView, RunViewer
from tests.orchestrator.billing.runs import HOUR, make_run
from tests.orchestrator.billing.test_export_file import (
    CORE,
    CUR,
    SPOT,
    cur_row,
    google_line,
    json_lines,
    write_csv,
)
from tests.orchestrator.histories import START, Ledger, at, make_controller, make_offer, make_record

RECORD = make_record(infra=["aws"], local=None, store="s3://bucket/runs")
DAYS = timedelta(days=1)


def reading(
    cloud="aws", source="bill.csv", *, read_after=10 * DAYS, days=(0, 2), **more
) -> BillRead:
    usd = more.pop("usd", {"compute": 10})
    return BillRead(
        cloud=cloud,
        source=source,
        read_at=START + read_after,
        start=START.date() + days[0] * DAYS,
        end=START.date() + days[1] * DAYS,
        currency="USD",
        usd={BillKind(kind): Decimal(amount) for kind, amount in usd.items()},
        instance_hours=more.pop("hours", None),
        num_lines=1,
        is_final=more.pop("is_final", False),
    )


def seen(*readings: BillRead, ledger: Ledger | None = None, record=RECORD) -> dict:
    ledger = ledger or Ledger()
    for number, one in enumerate(readings):
        ledger.add(10 * HOUR + number, one, writer="cli-9")
    state = fold(record, ledger.entries)
    view = RunView(state=state, measured=(), heartbeats=(), as_of=START + 30 * DAYS)
    document = reconciliation_document(view)
    assert document is not None
    return document


def ended_run(hours=2.0, **offer) -> Ledger:
    ledger = Ledger()
    ledger.launch("one", 0, until=1 + hours * HOUR, attempt=1, offer=make_offer(**offer))
    ledger.ended(2 + hours * HOUR)
    return ledger


@given(st.randoms(use_true_random=False), st.integers(0, 9))
def test_the_latest_reading_of_each_source_wins_whatever_the_order(
    dice: random.Random, num_repeats: int
):
    ledger = Ledger()
    old, new = reading(read_after=3 * DAYS), reading(read_after=4 * DAYS, usd={"compute": 11})
    other = reading(source="Cost Explorer", read_after=2 * DAYS)
    # One whose clock was behind was written later, and is not the latest.
    for number, one in enumerate((new, old, other)):
        ledger.add(number, one, writer=f"cli-{number}")
    entries = ledger.entries + [dice.choice(ledger.entries) for _ in range(num_repeats)]
    dice.shuffle(entries)
    assert fold(RECORD, entries).bills == (other, new)


def test_to_look_at_a_bill_is_not_to_spend():
    ledger = ended_run()
    before = fold(RECORD, ledger.entries).num_entries
    ledger.add(9, reading())
    assert fold(RECORD, ledger.entries).num_entries == before


def test_nodes_that_never_got_to_training_are_in_a_cloud_s_bill():
    ledger = ended_run()
    ledger.launch("two", 3 * HOUR, until=4 * HOUR + 1)  # no agent spoke
    (found,) = seen(reading(usd={"compute": 31}), ledger=ledger)["clouds"]
    assert found["parts"]["compute"]["computed_usd"] == 30
    assert found["parts"]["compute"]["difference_usd"] == 1


def test_another_cloud_s_nodes_are_not_compared():
    ledger = ended_run(cloud="gcp", region="us-central1")
    ledger.launch("two", 3 * HOUR, until=4 * HOUR + 1, attempt=2)
    (found,) = seen(reading(usd={"compute": 10}), ledger=ledger)["clouds"]
    assert found["parts"]["compute"]["computed_usd"] == 10


def test_only_the_days_that_were_read_are_compared():
    ledger = ended_run(hours=24)  # noon to noon
    first = seen(reading(days=(0, 1), usd={"compute": 120}, hours=Decimal(12)), ledger=ledger)
    (found,) = first["clouds"]
    assert found["parts"]["compute"]["difference_usd"] == pytest.approx(0, abs=0.01)
    assert found["instance_hours"]["difference_hours"] == pytest.approx(0, abs=0.001)
    assert not found["is_whole_run"]
    (found,) = seen(reading(days=(1, 2), usd={"compute": 120}), ledger=ended_run(24))["clouds"]
    assert found["parts"]["compute"]["difference_usd"] == pytest.approx(0, abs=0.01)
    (found,) = seen(reading(days=(0, 2)), ledger=ended_run(24))["clouds"]
    assert found["is_whole_run"]


def test_what_a_cloud_waives_goes_by_the_whole_launch_and_not_by_the_day():
    record = RECORD.model_copy(update={"simulated": False})
    ledger = Ledger()  # taken back by AWS around midnight
    ledger.launch("short", 11.75 * HOUR, until=12.25 * HOUR, attempt=1)
    ledger.launch("long", 10 * HOUR, until=12.5 * HOUR, attempt=2)
    for attempt, hours in ((1, 12.25), (2, 12.5)):
        told = NoticeReceived(attempt=attempt, deadline_at=at(hours * HOUR))
        ledger.add(hours * HOUR - 100, told, writer=f"agent-{attempt}")
    (found,) = seen(reading(days=(1, 2)), ledger=ledger, record=record)["clouds"]
    assert found["parts"]["compute"]["computed_usd"] == 5
    (found,) = seen(reading(days=(0, 1)), ledger=ledger, record=record)["clouds"]
    assert found["parts"]["compute"]["computed_usd"] == pytest.approx(20, abs=0.01)


def test_a_controller_is_not_in_a_bill_of_nodes():
    ledger = ended_run()
    controller = make_controller(0, "0.2")
    ledger.add(1, controller)
    (found,) = seen(reading(), ledger=ledger)["clouds"]
    assert found["not_in_bill"] == ["storage", "requests", "controller"]
    assert found["parts"]["compute"]["difference_usd"] == -10


def test_a_bucket_s_parts_are_compared_only_where_it_is_tagged():
    ledger = ended_run()
    ledger.commit(60, attempt=1, step=4, num_bytes=10**13)
    (bare,) = seen(reading(), ledger=ledger)["clouds"]
    assert bare["not_in_bill"] == ["storage", "requests"]
    assert bare["parts"].keys() == {"compute"}
    (found,) = seen(reading(usd={"compute": 1, "storage": 2}), ledger=ledger)["clouds"]
    assert found["not_in_bill"] == ["requests"]
    assert found["parts"]["storage"]["computed_usd"] > 0


@pytest.mark.parametrize(
    ("read_after", "is_final", "is_fresh"),
    [(47 * HOUR, False, True), (51 * HOUR, False, False), (47 * HOUR, True, False)],
)
def test_a_day_is_settled_after_two(read_after, is_final, is_fresh):
    one = reading(read_after=timedelta(seconds=read_after), is_final=is_final)
    (found,) = seen(one, ledger=ended_run())["clouds"]
    assert found["is_last_day_incomplete"] is is_fresh


def test_of_two_sources_of_one_cloud_the_later_is_compared():
    early = reading(source="Cost Explorer", read_after=3 * DAYS, usd={"compute": 9})
    late = reading(source="bill.csv", read_after=9 * DAYS, usd={"compute": 10})
    (found,) = seen(late, early, ledger=ended_run())["clouds"]
    assert (found["source"], found["billed_usd"]) == ("bill.csv", 10)


@pytest.fixture
def bills(tmp_path) -> dict[str, str]:
    files = {
        "aws": write_csv(CUR, [cur_row(SPOT, "21", amount="2.1"), cur_row(SPOT, "9", run="x")]),
        "gcp": json_lines(
            google_line(CORE, 25, credits=[-5]), google_line("Balanced PD Capacity", 1)
        ),
        "none": write_csv(CUR, [cur_row(SPOT, "9", run="x")]),
        "bad": b"a,b\n",
    }
    for name, content in files.items():
        (tmp_path / f"{name}.csv").write_bytes(content)
    return {name: str(tmp_path / f"{name}.csv") for name in files}


def test_exports_of_two_clouds_are_read_at_once_and_stay_read(tmp_path, bills, orchestrate):
    make_run(tmp_path)
    both = ("--reconcile", bills["aws"], "--reconcile", bills["gcp"])
    code, out, _ = orchestrate("cost", "demo", *both, "--json")
    assert code == 0
    document = json.loads(out)
    aws, gcp = document["reconciliation"]["clouds"]
    assert (aws["cloud"], aws["source"]) == ("aws", "aws.csv")  # not where it was on this machine
    assert aws["parts"]["compute"]["difference_usd"] == 1
    assert aws["instance_hours"]["difference_fraction"] == 0.05
    assert gcp["parts"]["compute"]["difference_usd"] == 5
    assert gcp["parts"]["credits"]["billed_usd"] == -5
    assert gcp["parts"]["disks"] == {
        "computed_usd": None,
        "billed_usd": 1,
        "difference_usd": None,
        "difference_fraction": None,
    }
    assert document["total_usd"] == sum(document["parts"].values())
    listed = json.loads(orchestrate("cost", "--json")[1])["runs"][0]
    assert listed["reconciliation"] == document["reconciliation"]
    store = open_store((tmp_path / "store").as_uri() + "/demo")
    table = build_page(RunViewer(store).look(SystemClock().now())).reconciliation
    assert table.rows[0][:4] == ("aws: compute", "$20.00", "$21.00", "+1.00")
    text = orchestrate("cost", "demo")[1]
    assert "disks                         -       $1.0000" in text
    assert "credits                       -      -$5.0000" in text


def test_a_bad_file_is_told_before_anything_is_spent_or_written(tmp_path, bills, orchestrate):
    store = make_run(tmp_path)
    sources = ("--reconcile", "aws", "--reconcile", bills["aws"], "--reconcile", bills["bad"])
    code, out, err = orchestrate("cost", "demo", *sources, "--yes")
    assert (code, out) == (2, "")
    assert "bad.csv has neither" in err
    view = RunViewer(store).look(datetime.now(timezone.utc))
    assert view.state.bills == ()


def test_no_line_of_the_run_says_why(tmp_path, bills, orchestrate):
    make_run(tmp_path)
    code, out, err = orchestrate("cost", "demo", "--reconcile", bills["none"], "--json")
    assert code == 0
    assert "none.csv has no line with the tag orchestrate-run=demo-1" in err
    assert json.loads(out)["reconciliation"] is None


def test_a_simulated_run_has_no_bill(tmp_path, bills, orchestrate):
    make_run(tmp_path, simulated=True)
    code, _, err = orchestrate("cost", "demo", "--reconcile", bills["aws"])
    assert code == 2
    assert "is simulated: no cloud has billed it" in err


def test_aws_is_not_asked_about_a_run_that_never_was_there(tmp_path, orchestrate):
    store = make_run(tmp_path)
    for entry in store.list("events"):
        text = store.get(entry.key).data.replace(b'"cloud":"aws"', b'"cloud":"gcp"')
        store.put(entry.key, text)
    code, _, err = orchestrate("cost", "demo", "--reconcile", "aws", "--yes")
    assert code == 2
    assert "demo was on gcp, so AWS has billed no node of it." in err


def test_one_run_at_a_time(orchestrate):
    code, _, err = orchestrate("cost", "--reconcile", "aws", "--yes")
    assert code == 2
    assert "for one run" in err


def test_a_run_that_an_earlier_version_carries_out_is_left_alone(tmp_path, bills, orchestrate):
    store = make_run(tmp_path)
    launched = Entry(
        schema_version=2, writer="cli-2", number=0, at=at(9 * HOUR), body=RunLaunched(host="laptop")
    )
    store.create("events/cli-2/00000000.jsonl", launched.model_dump_json().encode())
    code, _, err = orchestrate("cost", "demo", "--reconcile", bills["aws"])
    assert code == 2
    assert "carried out by an earlier version" in err


def test_a_reading_survives_the_trip_through_json():
    one = reading(usd={"compute": "0.000001", "credits": "-3"}, hours=Decimal("1.5"))
    entry = Entry(writer="cli-1", number=0, at=START, body=one)
    again = Entry.model_validate_json(entry.model_dump_json())
    assert again == entry
    assert again.schema_version == SCHEMA_VERSION
    assert isinstance(one.start, date)
