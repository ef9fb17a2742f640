"""An evaluation of a run's checkpoint is in its ledger, on its page, in its card and in W&B."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from decimal import Decimal

import pytest
from starlette.testclient import TestClient

from checkpoints.store import open_store
from orchestrator.clock import SystemClock
from orchestrator.dashboard.board import Board
from orchestrator.dashboard.evaluations import build_evaluation
from orchestrator.dashboard.page import render_evaluation, render_page
from orchestrator.dashboard.server import make_app
from orchestrator.evaluation.keeping import as_fact
from orchestrator.evaluation.questions import Question
from orchestrator.evaluation.report import (
    Item,
    Judged,
    Pair,
    Side,
    Spent,
    build_report,
    report_key,
)
from orchestrator.evaluation.telling import tell_run
from orchestrator.evaluation.verdicts import NoVerdict, Outcome, Preference, Rating
from orchestrator.evaluation.wandb_process import numbers
from orchestrator.home import run_home
from orchestrator.ledger.facts import Entry, RunLaunched
from orchestrator.ledger.fold import fold
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.record import create_record
from orchestrator.runs import remember_run
from orchestrator.view import RunViewer
from tests.orchestrator.histories import START, at, make_record
from tests.wandb_service import serving as wandb_serving

SCRIPT = "<script>alert(1)</script>"


def rating(score):
    return Rating(
        explanation=f"Because {SCRIPT}",
        coherence=score,
        relevance=score,
        fluency=score,
        engagement=score,
    )


def item(number, outcome, category="math"):
    seen = Preference(explanation="It is so.", better="first")
    return Item(
        question=Question(question_id=str(number), category=category, turns=("Why?", "Really?")),
        model=Judged(answers=(f"Ours {SCRIPT}", "Yes."), rating=rating(4)),
        baseline=Judged(answers=None, no_rating=NoVerdict.NO_ANSWER)
        if outcome is None
        else Judged(answers=("Theirs.", "No."), rating=rating(2)),
        pair=Pair(no_verdict=NoVerdict.NO_ANSWER)
        if outcome is None
        else Pair(outcome=outcome, model_first=seen, baseline_first=seen),
    )


@pytest.fixture
def report():
    items = [
        item(1, Outcome.WIN),
        item(2, Outcome.WIN, "talk"),
        item(3, Outcome.TIE, "talk"),
        item(4, None),
    ]
    return build_report(
        items,
        evaluation="demo-vs-base-0a1b2c3d",
        at=at(100),
        sides=(
            Side(name="demo", source="run demo, step 10", run="demo", step=10),
            Side(name="base", source="model"),
            Side(name="judge", source="http://127.0.0.1:1/v1"),
        ),
        questions="those that come along",
        judging=Spent(
            requests=14,
            asked_now=14,
            prompt_tokens=1000,
            completion_tokens=100,
            usd=Decimal("0.25"),
            usd_now=Decimal("0.25"),
        ),
    )


@pytest.fixture
def run(tmp_path):
    """A run folder that this machine knows."""
    url = (tmp_path / "runs").as_uri()
    store = open_store(f"{url}/demo")
    create_record(store, make_record(store=url))
    launched = Entry(writer="cli-0", number=0, at=START, body=RunLaunched(host="laptop"))
    store.create("events/cli-0/00000000.jsonl", launched.model_dump_json().encode())
    remember_run(run_home(url, "demo"), "demo", url)
    return store


def test_the_ledger_gets_one_fact_and_the_bill_none(run, report):
    before = RunViewer(run).look(at(200))
    assert tell_run(run, report, SystemClock()) == []
    after = RunViewer(run).look(at(200))
    (fact,) = after.state.judged
    assert (fact.evaluation, fact.step, fact.wins, fact.ties) == (report.evaluation, 10, 2, 1)
    assert fact.win_rate == pytest.approx((5 / 6, 0.4, 1.0), abs=0.2)
    assert fact.no_verdicts == 2
    assert before.parts == after.parts


def test_an_evaluation_that_is_made_again_replaces_the_last_in_any_order(report):
    record = make_record()
    facts = [
        Entry(
            writer="cli-1",
            number=number,
            at=START + timedelta(hours=number),
            body=as_fact(report, 10).model_copy(update={"wins": number}),
        )
        for number in range(3)
    ]
    for order in itertools.permutations(facts):
        (judged,) = fold(record, [*order, *order]).judged
        assert judged.wins == 2


def test_a_run_that_an_older_version_carries_out_is_not_told(run, report):
    old = Entry(schema_version=3, writer="s-1", number=9, at=at(1), body=RunLaunched(host="laptop"))
    run.create("events/s-1/00000000.jsonl", old.model_dump_json().encode())
    (said,) = tell_run(run, report, SystemClock())
    assert "earlier version" in said
    assert not any(entry.body.fact == "model_evaluated" for entry in LedgerReader(run).read())


def test_pages_show_it_and_let_nothing_in_an_answer_run(run, report):
    run.put(report_key(report.evaluation), report.model_dump_json().encode())
    tell_run(run, report, SystemClock())
    view = RunViewer(run).look(at(200))
    assert report.evaluation in render_page(view)
    page = render_evaluation(report)
    assert SCRIPT not in page
    assert "&lt;script&gt;" in page
    board = Board(None, SystemClock())
    client = TestClient(make_app(board, SystemClock()), base_url="http://localhost")
    (key,) = [one.key for one in board.every()]
    served = client.get(f"/runs/{key}/evaluations/{report.evaluation}")
    assert served.status_code == 200
    assert "Answers side by side" in served.text
    assert SCRIPT not in served.text
    as_json = client.get(f"/runs/{key}/evaluations/{report.evaluation}.json").json()
    assert as_json == json.loads(report.model_dump_json())
    table = client.get(f"/runs/{key}/tables/evaluations.json").json()
    assert table["rows"][0]["Wins"] == "2"
    for name in ("nothing", "..%2f..%2frun", "a b"):
        assert client.get(f"/runs/{key}/evaluations/{name}").status_code == 404


def test_the_page_says_who_won_and_why(report):
    page = build_evaluation(report)
    assert page.title == "demo against base"
    facts = dict(page.facts)
    assert facts["Wins, ties, losses"] == "2 / 1 / 0"
    assert facts["Judging"] == "14 replies, $0.250000"
    assert [row.name for row in page.outcomes] == ["all", "math", "talk"]
    assert page.items[0].verdict == "better"
    assert page.items[3].verdict == "no verdict: no answer to judge"
    assert page.items[3].shown[1].turns == ()
    assert page.categories.rows[0][0] == "math"


def test_wandb_gets_what_can_be_sorted_by(report):
    found = numbers(report)
    assert found["train/step"] == 10
    assert found["judge/win_rate"] == pytest.approx(5 / 6)
    assert found["judge/score_overall"] == 4
    assert found["judge/wins"] == 2
    assert found["judge/no_verdicts"] == 2
    assert found["judge/usd"] == 0.25


def test_wandb_draws_it_as_a_run_of_its_own(tmp_path, report, monkeypatch):
    """The real client in its process, and a server of W&B's on loopback."""
    url = (tmp_path / "runs").as_uri()
    store = open_store(f"{url}/demo")
    create_record(store, make_record(store=url, tracking={"wandb": {"project": "tests"}}))
    launched = Entry(writer="cli-0", number=0, at=START, body=RunLaunched(host="laptop"))
    store.create("events/cli-0/00000000.jsonl", launched.model_dump_json().encode())
    (said,) = tell_run(store, report, SystemClock())
    assert "no key" in said
    with wandb_serving() as service:
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", service.url)
        (said,) = tell_run(store, report, SystemClock())
        (row,) = service.rows
    assert "Drawn in W&B" in said
    assert row["judge/win_rate"] == pytest.approx(5 / 6)
    assert row["judge/score_coherence"] == 4
    assert row["judge/page"]["_type"] == "html-file"
