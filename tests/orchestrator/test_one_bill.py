"""What holds for the bill of any run, by whoever wrote its facts, in any order, by any clock."""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.layout import event_key, steps_key
from checkpoints.store import ObjectStore, open_store
from orchestrator.attempts import EndReason
from orchestrator.dashboard.content import build_page
from orchestrator.dashboard.page import render_page
from orchestrator.ledger.facts import (
    CheckpointDeleted,
    ControllerSeen,
    Entry,
    Fact,
    LaunchEnded,
    LaunchReady,
    LaunchStarted,
    NoticeReceived,
    PriceSampled,
    QuotedOffer,
    TerminatedBy,
)
from orchestrator.ledger.fold import fold
from orchestrator.ledger.measurements import Measured
from orchestrator.ledger.record import RunRecord, create_record
from orchestrator.offers import Market
from orchestrator.report import cost_document, status_document
from orchestrator.view import RunView, RunViewer
from tests.orchestrator.histories import (
    Ledger,
    at,
    make_offer,
    make_record,
    measured_phase,
    measured_step,
)
from train.spool import PhaseName

SIMULATED = make_record()
REAL = make_record(infra=["aws", "gcp"], local=None).model_copy(update={"simulated": False})

moments = st.floats(-600, 20_000, allow_nan=False)
lengths = st.floats(0, 9_000, allow_nan=False)
# Each writer's clock is minutes off.
skews = st.fixed_dictionaries(
    {name: st.floats(-400, 400) for name in ("supervisor-1", "controller-1", "agent-1", "agent-2")}
)
prices = st.decimals("0", "40", places=4)


@st.composite
def histories(draw: st.DrawFn) -> tuple[RunRecord, list[Entry], list[Measured]]:
    """Return a run's record, its facts and its measurements; nothing in them need make sense."""
    ledger, skew = Ledger(), draw(skews)

    def add(seconds: float, body: Fact, writer: str) -> None:
        ledger.add(seconds + skew[writer], body, writer)

    ledger.launched()
    if draw(st.booleans()):
        seen = ControllerSeen(
            launched_at=ledger.launched_at,
            cloud="aws",
            region="us-east-1",
            instance_type="m6i.xlarge",
            usd_per_hour=draw(st.none() | prices),
        )
        add(draw(moments), seen, "controller-1")
    for number in range(1, draw(st.integers(0, 4)) + 1):
        name, start, length = f"launch-{number}", draw(moments), draw(lengths)
        market = draw(st.sampled_from(Market))
        cloud, region = draw(
            st.sampled_from([("aws", "us-east-1"), ("gcp", "us-west1"), ("lambda", "us-east-1")])
        )
        offer = make_offer(region, market, usd=str(draw(prices)), cloud=cloud)
        started = LaunchStarted(launch=name, offer=QuotedOffer.quote(offer), num_nodes=2)
        add(start, started, "controller-1")
        if draw(st.booleans()):
            add(start + draw(lengths), LaunchReady(launch=name), "controller-1")
        if draw(st.booleans()):
            ledger.launch(name, start, attempt=number, step=draw(st.integers(0, 9)), offer=offer)
            ledger.commit(start + length, attempt=number, step=number, num_bytes=10**11)
            deadline_at = at(draw(moments))
            add(start, NoticeReceived(attempt=number, deadline_at=deadline_at), "agent-1")
        for _ in range(draw(st.integers(0, 3))):
            sampled = PriceSampled(launch=name, usd_per_hour=draw(prices), source="a test")
            add(draw(moments), sampled, "controller-1")
        if draw(st.booleans()):
            ended = LaunchEnded(
                launch=name,
                reason=draw(st.sampled_from(EndReason)),
                terminated_by=draw(st.sampled_from(TerminatedBy)),
            )
            add(start + length, ended, "supervisor-1")
    if draw(st.booleans()):
        add(
            draw(moments), CheckpointDeleted(checkpoint="checkpoints/step-00000001.a001"), "agent-2"
        )
    if draw(st.booleans()):
        ledger.ended(draw(moments))
    some = st.tuples(st.integers(1, 4), st.integers(1, 9), moments, st.floats(0, 50))
    measured = [
        measured_step(a, s, t, seconds=d) for a, s, t, d in draw(st.lists(some, max_size=9))
    ]
    some_phases = st.tuples(st.integers(1, 4), st.sampled_from(PhaseName), moments, lengths)
    measured += [measured_phase(*one) for one in draw(st.lists(some_phases, max_size=5))]
    return draw(st.sampled_from([SIMULATED, REAL])), ledger.entries, measured


def view_of(record: RunRecord, entries: Iterable[Entry], measured, now: float) -> RunView:
    state = fold(record, entries)
    return RunView(state=state, measured=tuple(measured), heartbeats=(), as_of=at(now))


def total(amounts: dict[str, float]) -> Decimal:
    return sum((Decimal(str(amount)) for amount in amounts.values()), Decimal(0))


@settings(deadline=None)
@given(histories(), moments)
def test_every_dollar_and_every_second_is_in_one_place_and_none_is_negative(history, now):
    view = view_of(*history, now)
    cost = cost_document(view)
    usd = Decimal(str(cost["total_usd"]))
    assert total(cost["parts"]) == usd
    # As floats to the bit where 64 millionths can make it so (record 5), else to what they hold.
    assert sum(cost["parts"].values()) == pytest.approx(cost["total_usd"], rel=1e-14)
    assert total(cost["basis"]) == usd
    assert total(cost["compute_by_bucket"]) == Decimal(str(cost["parts"]["compute"]))
    nodes = [*cost["attempts"], *cost["vain_launches"], *cost["coming_up"]]
    charged = sum((Decimal(str(one["usd"])) for one in nodes), Decimal(0))
    assert charged == view.parts.compute + view.parts.failed_launches
    places = [row.amount.strip("$").replace(",", "") for row in build_page(view).places.rows]
    assert sum(map(Decimal, places)) == view.parts.compute
    assert sum(cost["seconds"].values()) == cost["wall_seconds"]
    lost = cost["wall_seconds"] - cost["seconds"]["productive"]
    assert sum(cost["badput"].values()) == lost
    amounts = [
        *cost["parts"].values(),
        *cost["basis"].values(),
        *cost["compute_by_bucket"].values(),
        *cost["seconds"].values(),
        *(one["usd"] for one in nodes),
        *(one["waived_usd"] for one in cost["attempts"]),
        cost["waived_usd"],
        cost["storage_usd_per_day"],
        cost["on_demand_usd"],
        cost["wall_seconds"],
        cost["billed_seconds"],
    ]
    assert all(amount >= 0 for amount in amounts)
    assert 0 <= cost["goodput"]["wall"] <= 1
    assert 0 <= cost["goodput"]["billed"] <= 1


@settings(deadline=None)
@given(histories(), st.randoms(use_true_random=False), st.integers(1, 3))
def test_any_order_and_any_repetition_of_facts_gives_the_same_bill(history, dice, num_repeats):
    record, entries, measured = history
    shuffled = entries * num_repeats
    dice.shuffle(shuffled)
    assert fold(record, shuffled) == fold(record, entries)
    there, again = (view_of(record, some, measured, 9_999) for some in (entries, shuffled))
    assert json.dumps(cost_document(there)) == json.dumps(cost_document(again))


def write_run(store: ObjectStore, record: RunRecord, entries: Iterable[Entry], measured) -> None:
    """Write the objects of a run, one per fact, in any order."""
    create_record(store, record)
    for number, entry in enumerate(entries):
        key = event_key(entry.writer, number)
        store.create(key, entry.model_dump_json().encode())
    for number, one in enumerate(measured):
        key = steps_key(one.attempt, number)
        store.create(key, one.record.model_dump_json().encode())


def copied(store: ObjectStore, dice: random.Random) -> ObjectStore:
    """Copy a bucket, its objects in any order."""
    copy = open_store(f"memory://{secrets.token_hex(8)}")
    keys = [entry.key for entry in store.list("")]
    dice.shuffle(keys)
    for key in keys:
        copy.create(key, store.get(key).data)
    return copy


@settings(max_examples=50, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_a_copy_of_the_bucket_gives_the_same_bytes(history, dice):
    record, entries, measured = history
    store = open_store(f"memory://{secrets.token_hex(8)}")
    write_run(store, record, entries, measured)
    now = at(30_000)
    one, other = RunViewer(store).look(now), RunViewer(copied(store, dice)).look(now)
    for document in (cost_document, status_document):
        assert json.dumps(document(one)) == json.dumps(document(other))
    assert render_page(one) == render_page(other)


hostile = st.text(min_size=1, max_size=60) | st.sampled_from(
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' onmouseover='alert(1)",
        "</title></pre></script><svg onload=alert(1)>",
        "{{ 7 * 7 }}{% raw %}",
        "\u202egnp.exe",
        "javascript:alert(1)",
    ]
)


class Markup(HTMLParser):
    """Collects what a page is built of: tags with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data):
        self.text.append(data)


def page_of(zone: str, detail: str, why: str) -> Markup:
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, attempt=1, offer=make_offer(zone=zone))
    cloud = TerminatedBy.CLOUD
    lost = EndReason.NODE_LOST
    ledger.add(60, LaunchEnded(launch="one", reason=lost, terminated_by=cloud, detail=detail))
    ledger.ended(90, why=why)
    return Markup(render_page(view_of(SIMULATED, ledger.entries, [measured_step(1, 1, 5.0)], 100)))


@settings(max_examples=50, deadline=None)
@given(hostile, hostile, hostile)
def test_what_comes_from_outside_stays_text(zone, detail, why):
    """Zones, reasons of clouds, errors of trainers: they change no tag and no attribute."""
    hostile_page = page_of(zone, detail, why)
    assert hostile_page.tags == page_of("zone", "detail", "why").tags
    if "\r" not in detail and "\0" not in detail:  # HTML has no such characters
        assert detail in "".join(hostile_page.text)


def test_a_week_of_hourly_samples_adds_up():
    ledger = Ledger()
    ledger.launch("one", 0, attempt=1)
    for hour in range(1, 168):
        usd = Decimal(10) + Decimal(hour) / 100
        ledger.add(hour * 3600, PriceSampled(launch="one", usd_per_hour=usd, source="a test"))
    view = view_of(REAL, ledger.entries, [], timedelta(days=7).total_seconds())
    expected = sum(Decimal(10) + Decimal(hour) / 100 for hour in range(168))
    # One second of the first hour the node was still coming up.
    assert view.parts.compute == (expected - Decimal(10) / 3600).quantize(Decimal("0.000001"))
