"""The served dashboard: what it shows, whom it refuses, and that no text becomes markup."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from checkpoints.errors import StoreUnreachable
from checkpoints.layout import RUN_KEY, event_key, heartbeat_key, log_key
from checkpoints.store import open_store
from orchestrator.attempts import EndReason
from orchestrator.cli.dashboard import dashboard
from orchestrator.clock import Clock
from orchestrator.dashboard import board, page
from orchestrator.dashboard.board import Board
from orchestrator.dashboard.server import make_app
from orchestrator.ledger.facts import (
    AttemptEnded,
    DecisionMade,
    FinalState,
    LaunchEnded,
    StopReason,
    TerminatedBy,
)
from orchestrator.ledger.heartbeat import Heartbeat
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.record import create_record, read_record
from orchestrator.news import news
from orchestrator.view import RunViewer
from tests.orchestrator.histories import Ledger, at, make_record

HOSTILE = "<script>alert(1)</script>"


class At(Clock):
    """Stands still."""

    def now(self):
        return at(60)


def write_run(folder, name: str, *, why: str = "cheapest", over: bool = False, run_id=None, **spec):
    """Write a run whose first attempt is up since second 1, at 10 dollars an hour."""
    store = open_store(f"{folder.as_uri()}/{name}")
    ledger = Ledger()
    ledger.launched()
    ledger.add(0, DecisionMade(action="launch", why=why))
    ledger.launch("one", 0, attempt=1)
    if over:
        ledger.ended(50, FinalState.STOPPED, StopReason.BUDGET, "the budget is used up")
    record = make_record(name=name, store=folder.as_uri(), **spec)
    create_record(store, record.model_copy(update={"run": name, "run_id": run_id or name}))
    by_writer: dict[str, list[bytes]] = {}
    for entry in ledger.entries:
        by_writer.setdefault(entry.writer, []).append(entry.model_dump_json().encode())
    for writer, lines in by_writer.items():
        store.create(event_key(writer, 0), b"\n".join(lines))
    beat = Heartbeat(writer="supervisor-1", at=at(59), host="h", pid=1)
    store.put(heartbeat_key("supervisor-1"), beat.model_dump_json().encode())


def serve(folder, **options) -> TestClient:
    app = make_app(Board(folder.as_uri(), At()), At(), **options)
    # As the script of a page asks: it waits for what has to be read first.
    return TestClient(app, base_url="http://127.0.0.1:8645", headers={"HX-Request": "true"})


def key_in(page: str, name: str) -> str:
    found = re.search(rf'href="(/runs/{name}-[0-9a-f]{{12}})"', page)
    assert found is not None
    return found[1]


def test_runs_are_listed_with_what_they_cost_now(tmp_path):
    write_run(tmp_path, "one")
    write_run(tmp_path, "two", over=True)
    page = serve(tmp_path).get("/").text
    assert "2 runs, 2 of them simulated" in page
    row = page[page.index(">one<") : page.index(">two<")]
    assert "$10.00" in row
    assert "PENDING" in row
    assert "STOPPED" in page[page.index(">two<") :]
    assert "$10.00" not in page[page.index(">two<") :].replace("of $100.00", "")


def test_a_run_that_cannot_be_read_hides_no_other(tmp_path):
    write_run(tmp_path, "fine")
    open_store(f"{tmp_path.as_uri()}/torn").create(RUN_KEY, b"{")
    page = serve(tmp_path).get("/").text
    assert ">fine<" in page
    assert "Runs that cannot be read" in page
    assert ">torn<" in page


def test_without_a_run_it_says_how_to_start_one(tmp_path):
    (tmp_path / "runs").mkdir()
    page = serve(tmp_path / "runs").get("/").text
    assert "orchestrate launch examples/quickstart.yaml" in page


def test_new_runs_and_new_facts_show_up(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("orchestrator.dashboard.board.time.monotonic", lambda: now)
    client = serve(tmp_path)
    write_run(tmp_path, "one")
    assert ">one<" in client.get("/").text
    write_run(tmp_path, "later")
    assert ">later<" not in client.get("/").text
    now = 61.0
    assert ">later<" in client.get("/").text


def test_a_run_has_a_page_that_renews_itself_and_links_to_its_tables(tmp_path):
    write_run(tmp_path, "one")
    client = serve(tmp_path)
    address = key_in(client.get("/").text, "one")
    page = client.get(address).text
    assert f'hx-get="{address}"' in page
    assert "<style>" not in page
    links = set(re.findall(r'(?:href|src)="([^"]+)"', page)) - {"data:,", "/"}
    assert {f"{address}/status.json", f"{address}/tables/attempts.csv"} < links
    for link in links:
        assert client.get(link).status_code == 200, link
    assert client.get(f"{address}/cost.json").json()["run"] == "one"
    rows = client.get(f"{address}/tables/decisions.json").json()["rows"]
    assert rows[0]["Why"] == "cheapest"


def test_the_first_look_is_waited_for_on_a_page_that_says_so(tmp_path):
    write_run(tmp_path, "one")
    client = serve(tmp_path)
    del client.headers["HX-Request"]
    page = client.get("/").text
    assert "Reading the runs" in page
    assert 'hx-trigger="load, renew, every 10s"' in page
    assert ">one<" in client.get("/?wait=1").text
    assert ">one<" in client.get("/").text


def test_what_is_not_there_is_a_page_that_says_so(tmp_path):
    write_run(tmp_path, "one")
    client = serve(tmp_path)
    address = key_in(client.get("/").text, "one")
    none = "/runs/none-000000000000"
    for path in (none, f"{address}/tables/header.csv", f"{address}/tables/x.json"):
        assert client.get(path).status_code == 404
    assert "<h1" in client.get(none).text
    assert "<h1" in client.get("/nowhere").text
    assert client.get(f"{none}/cost.json").json()["error"] == "There is no such run."


def test_no_text_of_a_run_becomes_markup_or_a_formula(tmp_path):
    write_run(tmp_path, "one", why=f"=HYPERLINK(1) {HOSTILE}")
    client = serve(tmp_path)
    address = key_in(client.get("/").text, "one")
    assert HOSTILE not in client.get(address).text
    text = client.get(f"{address}/tables/decisions.csv").text
    (_, row) = csv.reader(io.StringIO(text))
    assert row[-1] == f"'=HYPERLINK(1) {HOSTILE}"


def test_every_answer_forbids_scripts_of_others(tmp_path):
    write_run(tmp_path, "one")
    client = serve(tmp_path)
    for path in ("/", "/static/live.js", "/runs/none", "/runs.json"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 400),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ({"host": "[::1]:8645"}, 200),
        ({"host": "[::1"}, 400),
        ({"host": "localhost:8645", "origin": "http://localhost:8645"}, 200),
    ],
)
def test_other_names_and_other_sites_are_refused(tmp_path, headers, status):
    assert serve(tmp_path).get("/", headers=headers).status_code == status


def test_a_run_of_the_same_name_takes_the_place_of_one_that_was_deleted(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("orchestrator.dashboard.board.time.monotonic", lambda: now)
    write_run(tmp_path, "one", why="the old one")
    client = serve(tmp_path)
    address = key_in(client.get("/").text, "one")
    assert "the old one" in client.get(address).text
    shutil.rmtree(tmp_path / "one")
    write_run(tmp_path, "one", why="the new one", run_id="one-2")
    now = 10.0
    page = client.get(address).text
    assert "the new one" in page
    assert "the old one" not in page
    shutil.rmtree(tmp_path / "one")
    now = 20.0
    assert client.get(address).status_code == 503


def test_what_was_seen_last_stays_while_a_store_is_silent(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("orchestrator.dashboard.board.time.monotonic", lambda: now)
    write_run(tmp_path, "one")
    client = serve(tmp_path)
    address = key_in(client.get("/").text, "one")
    assert "seen last" not in client.get(address).text

    def fail(*arguments):
        raise StoreUnreachable("The bucket does not answer.", "Check the network.")

    monkeypatch.setattr("orchestrator.dashboard.board.list_runs", fail)
    monkeypatch.setattr("orchestrator.dashboard.board.read_record", fail)
    now = 100.0
    page = client.get("/").text
    assert "The list may lack runs" in page
    assert "$10.00" in page
    assert "Runs that cannot be read" in page
    page = client.get(address).text
    assert "What is below is as it was seen last. The bucket does not answer." in page
    assert "<h1>one</h1>" in page


def test_one_run_that_nobody_foresaw_hides_no_other(tmp_path, caplog, monkeypatch):
    write_run(tmp_path, "fine")
    write_run(tmp_path, "odd")

    def read(store):
        assert not store.url.endswith("/odd")
        return read_record(store)

    monkeypatch.setattr(board, "read_record", read)
    page = serve(tmp_path).get("/").text
    assert ">fine<" in page
    assert "log says more" in page
    assert "Cannot look at" in caplog.text


def test_it_changes_nothing(tmp_path):
    client = serve(tmp_path)
    for method in ("post", "put", "delete", "patch"):
        assert getattr(client, method)("/").status_code == 405


def test_with_a_token_nothing_is_shown_without_it(tmp_path):
    write_run(tmp_path, "one")
    client = serve(tmp_path, token="a+b/=")
    for path in ("/", "/runs.json", "/static/page.css", "/?token=wrong", "/?token="):
        answer = client.get(path)
        assert answer.status_code == 401
        assert "one" not in answer.text.split()
    bearer = {"authorization": "Bearer a+b/="}
    assert client.get("/runs.json", headers=bearer).status_code == 200
    opened = client.get("/", params={"token": "a+b/="})
    assert opened.status_code == 200
    assert "token" not in str(opened.url)
    assert client.get("/").status_code == 200  # by its cookie


def test_a_store_that_does_not_answer_is_an_error_page(tmp_path, monkeypatch):
    def fail(store):
        raise StoreUnreachable("The bucket does not answer.", "Check the network.")

    monkeypatch.setattr("orchestrator.dashboard.board.list_runs", fail)
    answer = serve(tmp_path).get("/")
    assert answer.status_code == 503
    assert "The bucket does not answer." in answer.text
    assert "Check the network." in answer.text


def test_the_command_serves_until_it_is_interrupted(tmp_path):
    write_run(tmp_path, "one")
    command = [Path(sys.executable).with_name("orchestrate"), "dashboard", "--port", "0"]
    with subprocess.Popen(
        [*command, "--store", tmp_path.as_uri()], stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            found = re.search(r"http://127\.0\.0\.1:\d+/", server.stderr.readline())
            assert found is not None
            with urllib.request.urlopen(f"{found[0]}runs.json") as answer:
                assert [one["run"] for one in json.load(answer)["runs"]] == ["one"]
            server.send_signal(signal.SIGINT)
            assert server.wait(20) == 0
        finally:
            server.kill()


def test_a_port_that_is_taken_and_a_name_with_a_port_are_said_in_one_line(tmp_path, orchestrate):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, told = orchestrate("dashboard", "--store", tmp_path.as_uri(), "--port", port)
    assert code == 2
    assert f"Cannot listen at 127.0.0.1:{port}: " in told
    for name in ("*", "host:80", "http://host"):
        code, _, told = orchestrate("dashboard", "--store", tmp_path.as_uri(), "--name", name)
        assert code == 2
        assert "is no host's name" in told


def test_ticked_runs_are_compared_side_by_side(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path, name, over=True)
    client = serve(tmp_path)
    page = client.get("/").text
    keys = [key_in(page, name).rpartition("/")[2] for name in ("one", "two")]
    for key in keys:
        assert f'type="checkbox" name="run" value="{key}"' in page
    query = "&".join(f"run={key}" for key in keys)
    found = client.get(f"/compare?{query}")
    assert found.status_code == 200
    rows = client.get(f"/compare.json?{query}").json()["rows"]
    total = next(row for row in rows if row["Measure"] == "Total")
    assert total["one"] == total["two"]
    assert total["one"].startswith("$8.1")  # 49 s at $10 per minute
    table = list(csv.reader(io.StringIO(client.get(f"/compare.csv?{query}").text)))
    assert table[0] == ["Measure", "one", "two"]
    alone = client.get(f"/compare?run={keys[0]}")
    assert alone.status_code == 400
    assert "two runs or more" in alone.text


def test_logs_are_shown_per_attempt_and_node_as_text(tmp_path):
    write_run(tmp_path, "one")
    store = open_store(f"{tmp_path.as_uri()}/one")
    store.create(log_key(1, "00000000.log"), f"step 1 loss 2.5\n{HOSTILE}\n".encode())
    store.create(log_key(1, "node-001-00000000.log"), b"\xff not text\n")
    store.create(log_key(2, "00000000.log"), b"another attempt\n")
    client = serve(tmp_path)
    address = key_in(client.get("/").text, "one")
    assert f'href="{address}/logs/1"' in client.get(address).text
    page = client.get(f"{address}/logs/1").text
    assert "step 1 loss 2.5" in page
    assert "Node 1" in page
    assert HOSTILE not in page
    assert "another attempt" not in page
    text = client.get(f"{address}/logs/1.txt")
    assert text.headers["content-type"].startswith("text/plain")
    assert HOSTILE in text.text
    assert "Nothing was uploaded" in client.get(f"{address}/logs/3").text
    assert client.get("/runs/none-000000000000/logs/1").status_code == 404


def test_a_long_log_is_shown_from_its_end(tmp_path):
    write_run(tmp_path, "one")
    store = open_store(f"{tmp_path.as_uri()}/one")
    for number in range(3):
        store.create(log_key(1, f"{number:08d}.log"), f"piece {number}\n".encode() + b"x" * 50_000)
    client = serve(tmp_path)
    address = key_in(client.get("/").text, "one")
    page = client.get(f"{address}/logs/1").text
    assert "its last lines" in page
    assert "piece 2" in page
    assert "piece 0" not in page
    assert "piece 0" in client.get(f"{address}/logs/1.txt").text


def test_every_table_of_a_page_is_there_for_programs(tmp_path):
    write_run(tmp_path, "one", over=True)
    client = serve(tmp_path)
    address = key_in(client.get("/").text, "one")
    page = client.get(address).text
    links = set(re.findall(rf'href="({address}/tables/[a-z_]+\.(?:csv|json))"', page))
    names = {re.sub(r".*/|\.(csv|json)", "", link) for link in links}
    assert {"cost", "seconds", "places", "attempts", "decisions", "provenance"} <= names
    assert len(links) == 2 * len(names)
    for name in names:
        rows = client.get(f"{address}/tables/{name}.json").json()["rows"]
        table = list(csv.reader(io.StringIO(client.get(f"{address}/tables/{name}.csv").text)))
        assert table[0] == list(rows[0])
        assert len(table) == len(rows) + 1


def test_a_store_that_is_silent_holds_no_known_run_up(tmp_path, monkeypatch):
    write_run(tmp_path, "one", over=True)
    client = serve(tmp_path)
    address = key_in(client.get("/").text, "one")
    answers = threading.Event()
    list_once = board.list_runs

    def list_runs(store):
        assert answers.wait(60)
        return list_once(store)

    monkeypatch.setattr(board, "list_runs", list_runs)
    now = board.time.monotonic() + 61
    monkeypatch.setattr("orchestrator.dashboard.board.time.monotonic", lambda: now)
    began = time.perf_counter()
    for path in ("/", address, f"{address}/status.json"):
        assert client.get(path).status_code == 200
    assert time.perf_counter() - began < 30
    answers.set()


def test_no_key_is_shown_or_sent(tmp_path):
    secret = "hf_abcdefghijklmnopqrstuvwx"
    write_run(tmp_path, "one", why="ok")
    store = open_store(f"{tmp_path.as_uri()}/one")
    journal = Journal(store, "agent-1", At())
    error = f"401 for https://me:hunter2@example.com/x HF_TOKEN={secret} password: swordfish"
    journal.record(AttemptEnded(attempt=1, reason=EndReason.TRAINING_FAILED, step=3, error=error))
    journal.note(
        LaunchEnded(
            launch="one",
            reason=EndReason.TRAINING_FAILED,
            terminated_by=TerminatedBy.ITSELF,
            detail=f"exit 1: AKIAABCDEFGHIJKLMNOP {secret}",
        )
    )
    store.create(log_key(1, "00000000.log"), f"step 1\n{error}\n".encode())
    client = serve(tmp_path)
    address = key_in(client.get("/").text, "one")
    for path in ("", "/logs/1", "/logs/1.txt", "/status.json", "/tables/attempts.csv"):
        text = client.get(f"{address}{path}").text
        assert "[hidden]" in text or path == "/status.json"
        for word in (secret, "hunter2", "swordfish", "AKIAABCDEFGHIJKLMNOP"):
            assert word not in text
    told = news(RunViewer(store).look(at(60)))
    assert told
    assert secret not in repr(told)
    assert "hunter2" not in repr(told)


@pytest.mark.parametrize(
    "path",
    [
        *("/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2fserver.py"),
        *("/static//etc/passwd", "/static/%2fetc%2fpasswd", "//etc/passwd", "/static/"),
        *("/runs/../../etc/passwd", "/runs/%2e%2e", "/runs/..%2f..%2fetc%2fpasswd"),
        *("{run}/tables/..%2frun.json", "{run}/tables/%2e%2e.json", "{run}/tables/../run.json"),
        *(
            "{run}/evaluations/..%2f..%2frun.json",
            "{run}/evaluations/%2e%2e",
            "{run}/evaluations/%00",
        ),
        *("{run}/logs/..%2f..%2frun.txt", "{run}/logs/%2fetc%2fpasswd", "{run}/logs/1%00.txt"),
        *(
            "{run}/logs/" + "9" * 5000,
            "{run}/run.json",
            "{run}/events/",
            "/compare?run=../..&run=x",
        ),
    ],
)
def test_no_path_of_a_request_is_one_of_a_file(tmp_path, path):
    write_run(tmp_path, "one")
    client = serve(tmp_path)
    address = key_in(client.get("/").text, "one")
    answer = client.get(f"http://127.0.0.1:8645{path.format(run=address)}")
    assert answer.status_code in (400, 404, 422), path
    for secret in ("root:", "def make_app", '"run_id"', "schema_version"):
        assert secret not in answer.text


def test_beyond_loopback_a_token_is_made_up(tmp_path, orchestrate, monkeypatch):
    write_run(tmp_path, "one")
    statuses = []

    def run(server, sockets):
        for one in sockets:
            one.close()
        client = TestClient(server.config.app, base_url="http://127.0.0.1")
        statuses.append(client.get("/runs.json").status_code)

    monkeypatch.setattr("uvicorn.Server.run", run)
    for host, shows_token in (("127.0.0.1", False), ("0.0.0.0", True)):
        code, _, err = orchestrate(
            "dashboard", "--store", tmp_path.as_uri(), "--port", 0, "--host", host
        )
        assert code == 0
        assert bool(re.search(r"\?token=[\w-]{32}", err)) == shows_token
        assert ("Others can reach it" in err) == shows_token
    assert statuses == [200, 401]
    assert {one.default for one in dashboard.params if one.name == "host"} == {"127.0.0.1"}


def test_every_template_escapes_and_no_code_marks_text_as_markup():
    folder = Path(page.__file__).parent
    assert page.environment().autoescape is True
    for path in (*folder.rglob("*.jinja"), *folder.glob("*.py")):
        text = path.read_text()
        assert not re.search(r"\|\s*safe\b|Markup\(|autoescape false|autoescape=False", text), path
