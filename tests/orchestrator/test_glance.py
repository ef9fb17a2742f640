"""Lists of runs: what is kept of runs that are over is what would be computed again."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from checkpoints.layout import event_key
from orchestrator.glance import Glance, Unread, glance_at
from orchestrator.ledger.facts import Entry, RunLaunched
from orchestrator.report import cost_document, status_document
from orchestrator.runs import KnownRun
from orchestrator.view import RunViewer

RECORDED = Path(__file__).with_name("recorded_quickstart.json")
LATER = datetime(2026, 11, 30, tzinfo=timezone.utc)


@pytest.fixture
def known(tmp_path, monkeypatch) -> KnownRun:
    monkeypatch.setenv("ORCHESTRATE_HOME", str(tmp_path / "home"))
    run = KnownRun(run="quickstart", store_url=(tmp_path / "runs").as_uri())
    store = run.open()
    for key, text in json.loads(RECORDED.read_text()).items():
        store.create(key, text.encode())
    return run


def look(known: KnownRun, now: datetime = LATER) -> Glance | Unread:
    (found,) = glance_at([known], now)
    return found


def kept(tmp_path) -> list[Path]:
    return list((tmp_path / "home" / "runs").glob("*/glance.json"))


def test_what_is_kept_is_what_is_computed(known, monkeypatch):
    first = look(known)
    monkeypatch.setattr("orchestrator.glance.RunViewer", None)  # nothing is folded any more
    second = look(known)
    assert second.line == first.line
    view = RunViewer(known.open()).look(LATER)
    assert second.status() == status_document(view)
    assert second.cost() == cost_document(view)


def test_a_fact_that_comes_later_counts(known):
    assert "SUCCEEDED" in look(known).line
    entry = Entry(
        writer="cli-2", number=0, at=LATER - timedelta(minutes=1), body=RunLaunched(host="laptop")
    )
    known.open().create(event_key("cli-2", 0), entry.model_dump_json().encode())
    assert "SUCCEEDED" not in look(known).line


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"content": "x"}', b"\xff"])
def test_damage_to_what_is_kept_does_no_harm(known, tmp_path, content):
    line = look(known).line
    (path,) = kept(tmp_path)
    path.write_bytes(content)
    assert look(known).line == line


def test_a_run_that_has_just_ended_is_not_kept(known, tmp_path):
    look(known, datetime(2026, 11, 29, 5, 0, tzinfo=timezone.utc))
    assert not kept(tmp_path)


def test_a_run_that_was_deleted_is_not_shown_from_what_is_kept(known):
    look(known)
    store = known.open()
    store.delete([entry.key for entry in store.list("")])
    assert isinstance(look(known), Unread)


def test_a_home_that_cannot_be_written_does_no_harm(known, tmp_path):
    (tmp_path / "home").write_text("")
    assert "SUCCEEDED" in look(known).line


def test_runs_keep_their_order():
    runs = [KnownRun(run=name, store_url="memory://none") for name in "cab"]
    assert [one.run for one in glance_at(runs, LATER)] == ["c", "a", "b"]
