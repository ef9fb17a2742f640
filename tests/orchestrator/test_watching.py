"""`orchestrate status` for people: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import math
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from checkpoints.layout import event_key, heartbeat_key, steps_key
from checkpoints.store import ObjectStore, open_store
from orchestrator.attempts import EndReason
from orchestrator.cli.common import plain
from orchestrator.cli.frames import sparkline, status_frame
from orchestrator.cli.reports import render_status
from orchestrator.clock import SystemClock
from orchestrator.ledger.facts import FinalState, LaunchEnded, RunEnded, StopReason, TerminatedBy
from orchestrator.ledger.heartbeat import Heartbeat
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.record import create_record
from orchestrator.view import RunViewer
from tests.orchestrator import histories
from tests.orchestrator.histories import Ledger, make_record, measured_step


@pytest.fixture
def store(tmp_path, monkeypatch) -> ObjectStore:
    """Return the folder of a run that began just now, and reports on itself."""
    now = SystemClock().now()
    monkeypatch.setattr(histories, "START", now)
    ledger = Ledger()
    ledger.launched_at = now
    ledger.launched()
    ledger.launch("one", 0, attempt=1)
    store = open_store(f"{tmp_path.as_uri()}/demo")
    record = make_record(store=tmp_path.as_uri(), limits={"budget_usd": 100, "deadline": "30h"})
    create_record(store, record.model_copy(update={"created_at": now}))
    for number, entry in enumerate(ledger.entries):
        store.create(event_key(entry.writer, number), entry.model_dump_json().encode())
    steps = [measured_step(1, step, step, loss=3 - step / 10) for step in range(1, 6)]
    lines = [one.record.model_dump_json().encode() for one in steps]
    store.create(steps_key(1, 0), b"\n".join(lines))
    beat = Heartbeat(writer="supervisor-1", at=now, host="h", pid=1)
    store.put(heartbeat_key("supervisor-1"), beat.model_dump_json().encode())
    return store


def end(store: ObjectStore) -> None:
    launched_at = RunViewer(store).look(SystemClock().now()).state.launched_at
    ended = RunEnded(
        state=FinalState.STOPPED, reason=StopReason.REQUESTED, why="asked", launched_at=launched_at
    )
    Journal(store, "supervisor", SystemClock()).note(ended)


def command(tmp_path, *more: str) -> list[str | Path]:
    return [
        *(Path(sys.executable).with_name("orchestrate"), "status", "demo", "--watch"),
        *("--store", tmp_path.as_uri(), *more),
    ]


def test_sparkline_shows_the_way_and_leaves_out_what_is_no_number():
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"
    assert len(sparkline([1.0] * 5_000)) <= 40
    assert sparkline([1, math.nan, 2]) == "▁ █"
    assert sparkline([math.inf]) == " "
    assert sparkline([]) == ""


def test_a_terminal_shows_bars_and_what_is_left(store):
    view = RunViewer(store).look(SystemClock().now())
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(status_frame(view, render_status(view)))
    text = console.export_text()
    assert "5 of 10 (50%)" in text
    assert "█" * 20 + "░" * 20 in text
    assert "of $100 simulated" in text
    assert "left" in text  # to the deadline
    assert sparkline([2.9, 2.8, 2.7, 2.6, 2.5]) in text


def test_what_a_cloud_said_moves_no_cursor(orchestrate, store, tmp_path):
    lost = LaunchEnded(
        launch="one",
        reason=EndReason.NODE_LOST,
        terminated_by=TerminatedBy.CLOUD,
        detail="\x1b[2J\x1b]0;owned\x07gone",
    )
    Journal(store, "supervisor", SystemClock()).note(lost)
    for name in ("status", "cost"):
        code, out, _ = orchestrate(name, "demo", "--store", tmp_path.as_uri())
        assert code == 0
        assert "gone" in out
        assert "\x1b" not in out
    assert plain("a\tb\nc") == "a\tb\nc"


def test_watching_without_a_terminal_prints_lines_until_the_run_is_over(store, tmp_path):
    with subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        first = watching.stdout.readline()
        end(store)
        rest, _ = watching.communicate(timeout=60)
    assert "step 5/10" in first
    assert rest.startswith("STOPPED")
    assert "\x1b" not in first + rest
    assert watching.returncode == 0


def test_ctrl_c_ends_the_watching_and_says_that_the_run_goes_on(store, tmp_path):
    ours, theirs = pty.openpty()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command(tmp_path), **streams, start_new_session=True) as watching:
        os.close(theirs)
        shown = read_until(ours, "of $100")
        watching.send_signal(signal.SIGINT)
        said = read_until(ours, "Stop it: orchestrate stop demo")
    os.close(ours)
    assert "█" in shown
    assert "goes on" in said
    assert watching.returncode == 130


def read_until(terminal: int, words: str) -> str:
    shown, give_up_at = "", time.monotonic() + 60
    while words not in shown and time.monotonic() < give_up_at:
        if select.select([terminal], [], [], 1.0)[0]:
            shown += os.read(terminal, 65_536).decode(errors="replace")
    return shown


@pytest.mark.parametrize("more", [["--watch"], ["demo", "--watch", "--json"]])
def test_only_one_run_is_watched_and_by_people(orchestrate, tmp_path, more):
    code, _, error = orchestrate("status", *more, "--store", tmp_path.as_uri())
    assert code == 2
    assert "--watch shows one run" in error
