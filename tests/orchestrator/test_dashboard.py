"""The run's page: what it says, that it fetches nothing, and that no string of a run scripts it."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from orchestrator.attempts import EndReason, StopReason
from orchestrator.dashboard.charts import (
    Interval,
    dominant_segments,
    nice_ticks,
    place,
    stack_segments,
    stagger,
    thin,
)
from orchestrator.dashboard.content import build_page, build_table
from orchestrator.dashboard.page import environment, render_page
from orchestrator.errors import MissingDependency
from orchestrator.ledger.facts import (
    AttemptEnded,
    CheckpointDamaged,
    DecisionMade,
    FinalState,
    LaunchEnded,
    NoticeReceived,
    TerminatedBy,
)
from orchestrator.ledger.fold import fold
from orchestrator.ledger.heartbeat import Heartbeat
from orchestrator.ledger.measurements import Measured
from orchestrator.ledger.record import Percentiles, RecordedForecast
from orchestrator.report import cost_document, status_document
from orchestrator.view import RunView
from tests.fault_record import record_fault
from tests.orchestrator.histories import (
    Ledger,
    at,
    make_record,
    measured_phase,
    measured_step,
)
from train.spool import PhaseName

HOSTILE = "<script>alert(1)</script>\" onload='x' http://evil.example/"
# Elements that HTML never closes.
VOID = {"meta", "br", "img", "input", "hr", "link"}


class Elements(HTMLParser):
    """Collects (tag, attributes) and checks that what opens closes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def with_tag(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == tag]


def make_view(
    ledger: Ledger,
    measured: tuple[Measured, ...] = (),
    seconds: float = 100,
    heard_at: float | None = None,
    **spec: object,
) -> RunView:
    heard = () if heard_at is None else (Heartbeat(writer="s", at=at(heard_at), host="h", pid=1),)
    return RunView(
        state=fold(make_record(**spec), ledger.entries),
        measured=measured,
        heartbeats=heard,
        as_of=at(seconds),
    )


def preempted_run(
    *, loss_again: float = 2.0, detail: str = "the market's", why: str = "cheapest on offer"
) -> RunView:
    """One attempt lost after step 5 with a commit at 3; the next one trains on."""
    ledger = Ledger()
    ledger.launched()
    ledger.add(0, DecisionMade(action="launch", why=why))
    ledger.launch("one", 0, attempt=1)
    ledger.commit(8, attempt=1, step=3)
    ledger.add(9, NoticeReceived(attempt=1, deadline_at=at(12)), writer="agent-1")
    ended = LaunchEnded(
        launch="one",
        reason=EndReason.PREEMPTED,
        terminated_by=TerminatedBy.CLOUD,
        detail=detail,
    )
    ledger.add(12, ended)
    ledger.launch("two", 20, attempt=2, step=3)
    steps = [measured_step(1, step, 4 + step, loss=2.0) for step in range(1, 6)]
    again = [measured_step(2, step, 24 + step, loss=loss_again) for step in range(4, 8)]
    phases = [measured_phase(1, PhaseName.STARTUP, 2, 3)]
    measured = (*phases, *steps, *again)
    return make_view(ledger, measured, seconds=33, heard_at=32, limits={"budget_usd": 100})


def ended_run(state: FinalState, reason: StopReason, why: str, error: str | None = None) -> RunView:
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, until=9, attempt=1, reason=EndReason.TRAINING_FAILED)
    body = AttemptEnded(attempt=1, reason=EndReason.TRAINING_FAILED, step=2, error=error)
    ledger.add(8, body, writer="agent-1")
    ledger.ended(10, state, reason, why)
    return make_view(ledger, (measured_step(1, 1, 4), measured_step(1, 2, 5)))


def unstarted_run() -> RunView:
    ledger = Ledger()
    ledger.launched()
    return make_view(ledger, seconds=1)


STATES = {
    "PENDING": unstarted_run,
    "RUNNING": preempted_run,
    "FAILED": lambda: ended_run(
        FinalState.FAILED, StopReason.TOO_MANY_FAILURES, "3 failures", "CUDA error"
    ),
    "STOPPED": lambda: ended_run(FinalState.STOPPED, StopReason.REQUESTED, "you asked"),
}


@pytest.mark.parametrize("state", STATES)
def test_every_state_renders_as_well_formed_html_with_its_name_in_words(state):
    page = render_page(STATES[state]())
    assert Elements(page).open == []
    assert re.search(rf'class="badge[^>]*>.*{state}</p>', page)


@pytest.mark.parametrize("state", STATES)
def test_page_fetches_nothing_and_runs_nothing(state):
    page = render_page(STATES[state]())
    elements = Elements(page)
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "form"} & {
        tag for tag, _ in elements.found
    }
    for _, attributes in elements.found:
        assert not {"src", "href", "xlink:href", "srcset", "action", "style"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "://" not in page.replace("memory://", "")
    assert "@import" not in page
    assert set(re.findall(r"url\(([^)]*)\)", page)) == {"#hatch"}


def test_policy_forbids_everything_but_the_page_s_own_style():
    policies = [
        meta["content"]
        for meta in Elements(render_page(unstarted_run())).with_tag("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


@pytest.mark.parametrize(
    "view",
    [
        preempted_run(detail=HOSTILE, why=HOSTILE),
        ended_run(FinalState.FAILED, StopReason.TOO_MANY_FAILURES, HOSTILE, HOSTILE),
    ],
    ids=["detail and reason", "error and end"],
)
def test_strings_of_a_run_are_shown_and_never_become_markup(view):
    page = render_page(view)
    elements = Elements(page)
    assert elements.with_tag("script") == []
    assert not any("onload" in attributes for _, attributes in elements.found)
    shown = page.count("&lt;script&gt;alert(1)&lt;/script&gt;")
    record_fault("F25", "markup in what a run's page shows", injected=shown)


def test_same_view_gives_the_same_page():
    assert render_page(preempted_run()) == render_page(preempted_run())


@pytest.mark.parametrize("state", STATES)
def test_every_table_has_a_caption_and_scoped_headings_and_every_chart_a_name(state):
    elements = Elements(render_page(STATES[state]()))
    assert len(elements.with_tag("caption")) == len(elements.with_tag("table"))
    assert all(th.get("scope") in ("col", "row") for th in elements.with_tag("th"))
    named = [attributes for _, attributes in elements.found if attributes.get("role") == "img"]
    assert named
    assert all(attributes["aria-label"] for attributes in named)


def test_run_without_any_attempt_explains_what_is_missing():
    page = render_page(unstarted_run())
    assert "Nothing has been launched yet" in page
    assert "No loss yet" in page
    assert "Nothing has been billed yet" in page
    assert "No node has been taken back" in page


def test_simulated_run_says_so_with_its_time_scale():
    page = render_page(preempted_run())
    assert "SIMULATED" in page
    assert "1 s counts as 60 s" in page


def test_real_run_never_reads_as_simulated():
    view = preempted_run()
    record = view.record.model_copy(update={"simulated": False})
    ledger = Ledger()
    ledger.launched()
    real = RunView(state=fold(record, ledger.entries), measured=(), heartbeats=(), as_of=view.as_of)
    assert "simulated" not in render_page(real).lower().replace("badge-simulated", "")


def test_equal_replay_is_counted_and_a_differing_one_raises_an_alert():
    equal, differing = preempted_run(), preempted_run(loss_again=2.5)
    assert "2 of 2" in render_page(equal)
    assert 'class="alert' not in render_page(equal)
    page = render_page(differing)
    assert 'class="alert tone-bad"' in page
    assert "Steps 4, 5" in page
    assert "2 steps differ" in page


def test_amounts_are_those_of_the_cost_report():
    view = preempted_run()
    page, cost = build_page(view), cost_document(view)
    assert page.cost.total == f"${cost['total_usd']:,.6f}"
    shown = {row.name: float(row.amount.strip("$")) for row in page.cost.rows}
    nodes = sum(usd for name, usd in shown.items() if name.startswith("Nodes: "))
    assert nodes == pytest.approx(cost["parts"]["compute"], abs=1e-9)
    assert [shown[name] for name in ("Storage", "Requests", "Egress", "Controller")] == [
        cost["parts"][part] for part in ("storage", "requests", "egress", "controller")
    ]
    assert sum(shown.values()) == pytest.approx(cost["total_usd"], abs=1e-9)
    # A waterfall: each bar begins where the last one ended, and the last one ends at the total.
    ends = [row.start + row.bar for row in page.cost.rows]
    starts = [row.start for row in page.cost.rows]
    assert starts == pytest.approx([0, *ends[:-1]], abs=0.01)
    assert ends[-1] == pytest.approx(100, abs=0.01)
    assert page.places.total == f"${cost['parts']['compute']:,.6f}"


def test_preemption_row_says_notice_checkpoint_age_and_what_was_lost():
    row = build_page(preempted_run()).preemptions.rows[0]
    # Attempt 1, 3 s of notice, last step 5, last commit 3, steps 4 and 5 trained again.
    assert row[0] == "1"
    assert row[2:5] == ("3.0 s before", "2", "2")
    assert row[-1] == "the market's"


def test_timeline_has_a_row_per_launch_with_its_marks_and_one_for_the_gap():
    rows = build_page(preempted_run()).timeline.rows
    assert [row.label for row in rows] == ["attempt 1", "attempt 2", "no node"]
    assert Counter(mark.kind.value for mark in rows[0].marks) == {
        "commit": 1,
        "notice": 1,
        "kill": 1,
    }
    assert rows[0].segments[-1].segment.kind == "lost_work"


def test_launches_that_never_came_up_share_one_row():
    ledger = Ledger()
    ledger.launched()
    for index in range(3):
        start = 10 * index
        ledger.launch(f"full-{index}", start, until=start + 9, reason=EndReason.NO_CAPACITY)
    rows = build_page(make_view(ledger, seconds=40)).timeline.rows
    assert [(row.label, row.detail) for row in rows[:1]] == [("no attempt", "no capacity (3)")]
    assert [row.label for row in rows[1:]] == ["no node"]


def test_silent_run_says_that_it_may_still_cost():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, attempt=1)
    page = render_page(make_view(ledger, seconds=300, heard_at=5))
    assert "UNKNOWN" in page
    assert "it may still run and cost" in page


def test_loss_curve_marks_replaced_values_and_the_preemption():
    loss = build_page(preempted_run(loss_again=2.5)).loss
    assert loss is not None
    replaced = [dot for dot in loss.dots if dot.kind == "replayed"]
    assert len(replaced) == 2
    assert [(rule.label, rule.at, rule.band_start) for rule in loss.rules] == [("1→2", 50, 30)]


def test_spend_ends_at_the_compute_part():
    view = preempted_run()
    spend = build_page(view).spend
    assert spend is not None
    x, y = (float(number) for number in spend.lines[0].points.split()[-1].split(","))
    assert x == spend.x.place(view.goodput.wall.total_seconds())
    usd = (100 - y) / 100 * (spend.y.high - spend.y.low)
    assert usd == pytest.approx(float(view.parts.compute), rel=1e-3)


def test_long_run_gives_a_page_of_bounded_size():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, attempt=1)
    measured = tuple(measured_step(1, step, 4 + 1.01 * step) for step in range(1, 20_001))
    view = make_view(ledger, measured, seconds=20_300, heard_at=20_300)
    assert len(render_page(view)) < 400_000


def test_missing_jinja2_names_the_command_that_installs_it(monkeypatch):
    environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependency) as caught:
        render_page(unstarted_run())
    assert caught.value.next_step == "pip install -c constraints.txt -e '.[dashboard]'"


def test_ticks_are_round_and_inside():
    assert nice_ticks(0, 102, 6) == (0, 20, 40, 60, 80, 100)
    assert nice_ticks(6.95, 8.46, 6) == (7, 7.5, 8)
    assert nice_ticks(0, 0.3, 3) == (0, 0.1, 0.2, 0.3)
    assert nice_ticks(5, 5, 6) == (5,)


def test_place_cuts_off_at_the_ends():
    assert [place(value, 0, 4) for value in (-1, 0, 1, 4, 9)] == [0, 0, 25, 100, 100]


def test_stack_fills_the_bar_and_leaves_out_zeros():
    segments = stack_segments([("a", 1.0), ("b", 0.0), ("c", 3.0)])
    assert [(one.kind, one.start, one.width) for one in segments] == [("a", 0, 25), ("c", 25, 75)]


def test_bins_take_the_kind_that_lasts_longest_and_stay_empty_where_nothing_is():
    intervals = [
        Interval(kind="a", start=0, end=2.9),
        Interval(kind="b", start=2.9, end=3.0),
        Interval(kind="b", start=5, end=6),
    ]
    segments = dominant_segments(intervals, 0, 10, num_bins=10)
    assert [(one.kind, one.start, one.width) for one in segments] == [("a", 0, 30), ("b", 50, 10)]


def test_thinned_curve_keeps_its_spike():
    points = [(float(x), 50.0 if x == 777 else 1.0) for x in range(5000)]
    kept = thin(points, 100)
    assert len(kept) <= 102
    assert (777.0, 50.0) in kept


def test_labels_that_would_overlap_move_up_or_vanish():
    assert stagger([10, 12, 14, 30], 10, 2) == (0, 1, None, 0)


def test_a_damaged_checkpoint_is_named_and_is_not_the_newest():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, until=50, attempt=1)
    ledger.commit(10, attempt=1, step=5)
    ledger.commit(20, attempt=1, step=10)
    manifest = "checkpoints/step-00000010.a001/manifest.json"
    damaged = CheckpointDamaged(attempt=2, manifest=manifest, what="rank 1's shard is torn")
    ledger.add(60, damaged, writer="agent-2")
    page = build_page(make_view(ledger, (measured_step(1, 10, 19),)))
    assert [row[-1] for row in page.checkpoints.rows] == [
        "damaged: rank 1's shard is torn",
        "kept, newest",
    ]
    assert page.preemptions.rows[0][3] == "5"  # steps since a checkpoint that can be used


def test_what_we_ended_is_no_preemption_anywhere():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, attempt=1)
    lost = LaunchEnded(launch="one", reason=EndReason.NODE_LOST, terminated_by=TerminatedBy.US)
    ledger.add(30, lost)
    page = build_page(make_view(ledger))
    assert page.preemptions.rows == ()
    (shown,) = [one.value for one in page.indicators if one.label == "Preemptions"]
    assert shown == "0"


def test_nodes_that_were_lost_before_they_trained_were_paid_for_nothing():
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, until=61, reason=EndReason.NODE_LOST)
    row = build_page(make_view(ledger)).preemptions.rows[0]
    assert row[6] == row[7] == "$10.00"


def test_tables_for_programs_have_all_rows_and_pages_the_last_ones():
    ledger = Ledger()
    ledger.launched()
    for number in range(1, 301):
        ledger.launch(f"l{number}", 10 * number, until=10 * number + 9, attempt=number, step=0)
    steps = tuple(measured_step(1, step, 10 + step / 100) for step in range(1, 601))
    view = make_view(ledger, steps, seconds=4_000)
    page = build_page(view)
    assert len(page.attempts.rows) == 200
    assert page.attempts.rows[-1][0] == "300"
    assert page.attempts.note is not None
    assert len(page.losses.rows) == 200
    for name, num_rows in (("attempts", 300), ("losses", 600)):
        table = build_table(view, name)
        assert table is not None
        assert len(table.rows) == num_rows
        assert table.note is None
    assert build_table(view, "header") is None


def test_the_expected_total_and_the_price_per_token_are_told():
    forecast = RecordedForecast(
        hours=Percentiles(p10=1, p50=2, p90=3),
        usd=Percentiles(p10=40, p50=60, p90=80),
        work_hours=1.5,
    )
    view = preempted_run()
    record = view.record.model_copy(update={"forecast": forecast})
    view = replace(view, state=replace(view.state, record=record))
    shown = {one.label: one for one in build_page(view).indicators}
    status, cost = status_document(view), cost_document(view)
    assert shown["Expected total"].value == f"${status['forecast']['usd']['p50']:.2f}"
    assert "in 8 of 10 cases" in shown["Expected total"].detail
    assert shown["Per million tokens"].value == f"${cost['usd_per_million_tokens']:,.2f}"
