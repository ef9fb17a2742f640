"""The command line: exit codes, one line what and one line what to do, JSON documents."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from checkpoints.layout import event_key
from checkpoints.store import open_store
from orchestrator import cli as cli_module
from orchestrator.attempts import EndReason
from orchestrator.clock import SystemClock
from orchestrator.home import run_home
from orchestrator.ledger.facts import (
    DecisionMade,
    LaunchEnded,
    LaunchStarted,
    QuotedOffer,
    TerminatedBy,
)
from orchestrator.ledger.heartbeat import Heartbeat, beat
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.measurements import Measured
from orchestrator.ledger.record import create_record
from orchestrator.runs import remember_run
from tests.fault_record import record_fault
from tests.loose_s3 import BUCKET
from tests.orchestrator.histories import (
    Ledger,
    at,
    make_offer,
    make_record,
    measured_phase,
    measured_step,
)
from train.spool import Evaluated, PhaseName

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def finished(tmp_path) -> str:
    """A store with one run that was preempted once and finished; returns its URL."""
    url = (tmp_path / "store").as_uri()
    folder = open_store(f"{url}/demo")
    record = make_record(store=url)
    create_record(folder, record)
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 1, until=20, attempt=1)
    ledger.commit(12, attempt=1, step=4)
    ledger.launch("two", 21, until=50, attempt=2, step=4, reason=EndReason.SUCCEEDED)
    ledger.commit(49, attempt=2, step=10)
    ledger.ended(50)
    for entry in ledger.entries:
        key = f"events/{entry.writer}/{entry.number:08d}.jsonl"
        folder.create(key, entry.model_dump_json().encode())
    measured = [measured_step(1, step, 4 + 2 * step, seconds=2) for step in range(1, 7)]
    measured += [measured_phase(2, PhaseName.RESTORE, 25, 1)]
    measured += [measured_step(2, step, 18 + 2 * step, seconds=2) for step in range(5, 11)]
    measured += [
        # That of step 4 was made again by the attempt that was resumed from there.
        Measured(
            attempt=attempt,
            record=Evaluated(at=at(second), step=step, loss=loss, num_trained_tokens=9),
        )
        for attempt, second, step, loss in ((1, 3, 0, 4.0), (1, 12, 4, 3.5), (2, 26, 4, 3.5))
    ]
    for attempt in (1, 2):
        lines = [one.record.model_dump_json() for one in measured if one.attempt == attempt]
        folder.put(f"steps/{attempt:06d}/00000000.jsonl", "\n".join(lines).encode())
    remember_run(run_home(url, "demo"), "demo", url)
    return url


def test_status_says_why_nothing_runs(orchestrate, tmp_path):
    url = (tmp_path / "store").as_uri()
    folder = open_store(f"{url}/demo")
    create_record(folder, make_record(store=url))
    journal = Journal(folder, "supervisor", SystemClock())
    offer = QuotedOffer.quote(make_offer("eu-west-1"))
    journal.record(LaunchStarted(launch="one", offer=offer, num_nodes=1))
    journal.record(
        LaunchEnded(
            launch="one",
            reason=EndReason.NO_CAPACITY,
            terminated_by=TerminatedBy.CLOUD,
            detail="MaxSpotInstanceCountExceeded",
        )
    )
    journal.note(DecisionMade(action="wait", why="no capacity in 1 zones a moment ago"))
    _, out, _ = orchestrate("status", "demo", "--store", url)
    assert "Decided to wait: no capacity in 1 zones a moment ago" in out
    assert "aws eu-west-1 eu-west-1-a spot: no_capacity (MaxSpotInstanceCountExceeded)" in out
    _, out, _ = orchestrate("status", "demo", "--store", url, "--json")
    assert json.loads(out)["vain_launches"][0]["detail"] == "MaxSpotInstanceCountExceeded"


def write_spec(folder: Path, **changes: object) -> Path:
    spec = {
        "name": "demo",
        "store": str(folder / "store"),
        "infra": "local",
        "model": {"base": str(EXAMPLES / "tiny-llama"), "max_length": 128},
        "data": {"train": str(EXAMPLES / "conversations.json")},
        "train": {"num_steps": 4},
        "limits": {"budget_usd": 5},
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump({**spec, **changes}))
    return path


def assert_two_lines(err: str, *words: str) -> None:
    lines = err.strip().splitlines()
    assert len(lines) == 2, err
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_status_document_holds_the_contract(orchestrate, finished):
    code, out, _ = orchestrate("status", "demo", "--json")
    document = json.loads(out)
    assert code == 0
    assert next(iter(document)) == "schema_version"
    wanted = {
        *("run", "state", "as_of", "step", "num_steps", "last_commit_step", "num_preemptions"),
        *("attempts", "replay", "usd", "budget_usd", "deadline_at", "eta_at", "goodput"),
    }
    assert wanted <= document.keys()
    assert document["state"] == "SUCCEEDED"
    assert (document["step"], document["last_commit_step"]) == (10, 10)
    assert document["replay"] == {"steps": 2, "max_abs_diff": 0.0, "differing": []}
    assert document["num_preemptions"] == 1
    assert document["evaluations"] == [{"step": 0, "loss": 4.0}, {"step": 4, "loss": 3.5}]
    _, out, _ = orchestrate("status", "demo")
    assert "evaluation loss 4.000 after step 0, 3.500 after step 4" in out
    first = document["attempts"][0]
    wanted = {
        *("attempt", "cloud", "region", "zone", "market", "nodes", "started_at", "ended_at"),
        *("end_reason", "usd"),
    }
    assert wanted <= first.keys()
    assert (first["end_reason"], first["market"]) == ("preempted", "spot")
    assert document["simulated"] is True


def test_cost_document_adds_up_exactly(orchestrate, finished):
    _, out, _ = orchestrate("cost", "demo", "--json")
    document = json.loads(out, parse_float=Decimal)
    assert sum(document["parts"].values()) == document["total_usd"] > 0
    assert set(document["parts"]) == {
        *("compute", "storage", "requests", "egress", "controller", "failed_launches")
    }
    assert sum(document["seconds"].values()) == document["wall_seconds"] == 50
    assert document["simulated"] is True
    attempts = sum(attempt["usd"] for attempt in document["attempts"])
    assert attempts == document["parts"]["compute"]


def test_cost_document_adds_up_for_a_reader_of_plain_floats_too(orchestrate, finished):
    document = json.loads(orchestrate("cost", "demo", "--json")[1])
    assert sum(document["parts"].values()) == document["total_usd"]
    assert sum(document["seconds"].values()) == document["wall_seconds"]


@pytest.mark.parametrize("name", ["../demo", ".", "demo/../demo", "/etc", "Demo", ""])
@pytest.mark.parametrize("command", [["status"], ["delete", "--confirm", "../demo"]])
def test_names_that_reach_out_of_the_store_are_refused(orchestrate, finished, name, command):
    code, _, err = orchestrate(command[0], name, *command[1:], "--store", f"{finished}/sub")
    assert code == 2
    assert "Traceback" not in err
    assert open_store(f"{finished}/demo").list("")


def test_silent_node_is_billed_until_it_must_have_stopped_itself(orchestrate, tmp_path):
    url = (tmp_path / "store").as_uri()
    folder = open_store(f"{url}/demo")
    create_record(folder, make_record(store=url))
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 1, attempt=1)
    for entry in ledger.entries:
        key = f"events/{entry.writer}/{entry.number:08d}.jsonl"
        folder.create(key, entry.model_dump_json().encode())
    beat(folder, Heartbeat(writer="supervisor-1", at=at(32), host="laptop", pid=1))
    document = json.loads(orchestrate("cost", "demo", "--store", url, "--json")[1])
    assert document["state"] == "UNKNOWN"
    assert document["parts"]["compute"] == pytest.approx(10 * 60 / 60)  # 2 s to 62 s at $10/h
    assert document["seconds"]["waiting"] > 0


def test_declined_launch_says_that_nothing_was_done(orchestrate, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    code, _, err = orchestrate("launch", write_spec(tmp_path))
    assert code == 2
    assert "Nothing was done." in err
    assert not (tmp_path / "store").exists()


def test_people_are_told_what_is_simulated(orchestrate, finished):
    for command in ("status", "cost"):
        code, out, _ = orchestrate(command, "demo")
        assert code == 0
        assert "simulated" in out


def test_runs_without_a_name_are_listed_and_broken_ones_do_not_hide_the_rest(orchestrate, finished):
    broken = open_store(f"{finished}/broken")
    broken.create("run.json", b"{")
    code, out, _ = orchestrate("status", "--store", finished, "--json")
    assert code == 0
    states = {run["run"]: run["state"] for run in json.loads(out)["runs"]}
    assert states == {"demo": "SUCCEEDED", "broken": "UNKNOWN"}


def test_empty_states_explain_themselves(orchestrate):
    code, out, err = orchestrate("status")
    assert (code, out) == (0, "")
    assert "orchestrate launch" in err


def test_unknown_run_suggests_the_nearest_name(orchestrate, finished):
    code, out, err = orchestrate("status", "dmo")
    assert (code, out) == (2, "")
    assert_two_lines(err, "did you mean demo?")


def test_unknown_command_suggests_the_nearest(orchestrate):
    code, _, err = orchestrate("lunch")
    assert code == 2
    assert "Did you mean launch?" in err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"limits": {"budgt": 5}}, ["unknown key limits.budgt"]),
        ({"train": {"num_steps": 0}}, ["train.num_steps"]),
        ({"data": {"train": "/nowhere/data.json"}}, ["/nowhere/data.json", "does not exist"]),
        ({"model": {"base": "/nowhere/model"}}, ["/nowhere/model", "not a folder"]),
        ({"data": {"train": "https://example.invalid/x.json"}}, ["URL"]),
        ({"nodes": {"accelerators": "TPU:8"}}, ["TPU:8"]),
    ],
)
def test_bad_specs_exit_2_in_two_lines(orchestrate, tmp_path, changes, words):
    for command in (["plan"], ["launch", "--yes"]):
        code, out, err = orchestrate(command[0], write_spec(tmp_path, **changes), *command[1:])
        assert (code, out) == (2, "")
        assert_two_lines(err, *words)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "conversations",
    [
        "not json",
        "[]",
        '[{"id": "a", "conversations": [{"from": "human", "value": "hello"}]}]',
        '{"a": 1}',
    ],
)
def test_data_without_anything_to_train_on_exits_2_in_two_lines(
    orchestrate, tmp_path, conversations
):
    data = tmp_path / "data.json"
    data.write_text(conversations)
    code, _, err = orchestrate("launch", write_spec(tmp_path, data={"train": str(data)}), "--yes")
    assert code == 2
    assert_two_lines(err)
    assert not (tmp_path / "store").exists()


def test_store_that_cannot_be_written_exits_2_in_two_lines(orchestrate, tmp_path):
    (tmp_path / "file").write_text("in the way")
    spec = write_spec(tmp_path, store=str(tmp_path / "file" / "store"))
    code, _, err = orchestrate("launch", spec, "--yes")
    assert code == 2
    assert "Traceback" not in err
    assert len(err.strip().splitlines()[-2:]) == 2


def test_store_that_cannot_be_reached_exits_3(orchestrate, tmp_path, monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }.items():
        monkeypatch.setenv(name, value)
    code, _, err = orchestrate("status", "demo", "--store", "s3://bucket/runs")
    assert code == 3
    assert_two_lines(err, "s3://bucket")


def test_different_run_of_the_same_name_is_refused_and_left_alone(orchestrate, finished, tmp_path):
    before = open_store(f"{finished}/demo").get("run.json").data
    spec = write_spec(tmp_path, store=finished, train={"num_steps": 7})
    code, _, err = orchestrate("launch", spec, "--yes")
    assert code == 2
    assert "different run of that name" in err
    assert "--set name=" in err
    assert open_store(f"{finished}/demo").get("run.json").data == before


def test_launch_without_a_terminal_needs_yes(tmp_path):
    spec = write_spec(tmp_path)
    result = CliRunner().invoke(cli_module.cli, ["launch", str(spec)])
    assert result.exit_code == 2
    assert "--yes" in result.output
    assert not (tmp_path / "store").exists()


def test_clouds_are_planned(orchestrate):
    code, out, _ = orchestrate("plan", EXAMPLES / "vicuna-13b.yaml", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["estimate"]["usd_cheapest"] > 0
    assert document["worst_case_usd"] == 450
    assert document["egress"]["checkpoint_gb"] == 156  # 13e9 x 12 bytes
    home = document["egress"]["home"]
    moves = {f"{one['cloud']}/{one['region']}": one["move_usd"] for one in document["offers"]}
    assert moves.pop(home) == 0
    cloud = home.partition("/")[0]
    assert set(moves.values()) == {3.12, 14.04}
    assert all((usd == 3.12) == place.startswith(f"{cloud}/") for place, usd in moves.items())
    _, out, _ = orchestrate("plan", EXAMPLES / "vicuna-13b.yaml")
    assert "$3.12 within" in out
    assert "checkpoints.stores" in out


def test_launch_on_clouds_needs_a_store_that_nodes_reach(orchestrate, tmp_path):
    here = [f"--set=store={tmp_path}", f"--set=data.train={EXAMPLES / 'conversations.json'}"]
    spec = EXAMPLES / "vicuna-7b.yaml"
    model = f"--set=model.base={EXAMPLES / 'tiny-llama'}"
    code, _, err = orchestrate("launch", spec, *here, model, "--yes")
    assert code == 2
    assert "nodes on clouds cannot reach" in err


def test_launch_on_clouds_says_which_source_is_missing(orchestrate):
    spec = EXAMPLES / "vicuna-7b.yaml"
    code, _, err = orchestrate("launch", spec, "--set=data.train=/nowhere.json", "--yes")
    assert code == 2
    assert "/nowhere.json does not exist" in err


def test_delete_needs_the_name_and_leaves_nothing(orchestrate, finished):
    for arguments in (["delete", "demo"], ["delete", "demo", "--confirm", "other"]):
        code, _, _ = orchestrate(*arguments)
        assert code == 2
        assert open_store(f"{finished}/demo").list("")
    code, _, _ = orchestrate("delete", "demo", "--confirm", "demo")
    assert code == 0
    assert open_store(f"{finished}/demo").list("") == []


def test_resume_refuses_to_change_what_the_run_is(orchestrate, finished):
    code, _, err = orchestrate("resume", "demo", "--yes", "--set", "train.seed=1")
    assert code == 2
    assert_two_lines(err, "train decides what the run is")


def test_dashboard_is_one_page_that_fetches_nothing(orchestrate, finished, tmp_path):
    page = tmp_path / "demo.html"
    for run in (["demo"], []):
        code, _, err = orchestrate("dashboard", *run, "--export", page)
        assert code == 0, err
        assert "demo" in page.read_text()
    text = page.read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", text)


@pytest.mark.parametrize("other", ["az://gone/runs", f"s3://{BUCKET}"], ids=["closed", "refusing"])
def test_delete_says_what_it_cannot_empty_and_deletes_the_rest(
    orchestrate, tmp_path, monkeypatch, loose, other
):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    loose.objects["demo/checkpoints/step-00000001.a001/x.safetensors"] = b"x"
    loose.refuses_deletes = True
    url, east = (tmp_path / "store").as_uri(), (tmp_path / "east").as_uri()
    stores = {"azure/eastus": other, "aws/us-east-1": east}
    folder = open_store(f"{url}/demo")
    create_record(folder, make_record(store=url, checkpoints={"stores": stores}))
    open_store(f"{east}/demo").put("checkpoints/step-00000001.a001/x.safetensors", b"x")
    ledger = Ledger()
    ledger.launched()
    ledger.ended(5)
    for entry in ledger.entries:
        key = f"events/{entry.writer}/{entry.number:08d}.jsonl"
        folder.create(key, entry.model_dump_json().encode())
    remember_run(run_home(url, "demo"), "demo", url)
    code, _, err = orchestrate("delete", "demo", "--confirm", "demo")
    assert code == 0, err
    assert f"{other}{'/demo' if other.startswith('s3') else ''} cannot be emptied" in err
    assert open_store(f"{url}/demo").list("") == []
    assert open_store(f"{east}/demo").list("") == []


def test_logs_of_an_attempt_s_nodes_are_told_apart(orchestrate, finished):
    folder = open_store(f"{finished}/demo")
    pieces = {
        "000001/00000000.log": "step 1\n",
        "000001/00000001.log": "step 2\n",
        "000001/node-001-00000000.log": "rank 4: hot\n",
        "000002/00000000.log": "step 3\n",
        "000002/run-x.wandb": "binary",
    }
    for name, text in pieces.items():
        folder.put(f"logs/{name}", text.encode())
    _, out, _ = orchestrate("logs", "demo")
    assert out == (
        "--- attempt 1 ---\nstep 1\nstep 2\n--- attempt 1, node 1 ---\nrank 4: hot\n"
        "--- attempt 2 ---\nstep 3\n"
    )
    _, out, _ = orchestrate("logs", "demo", "--node", "1")
    assert out == "--- attempt 1, node 1 ---\nrank 4: hot\n"
    code, _, err = orchestrate("logs", "demo", "--attempt", "2", "--node", "1")
    assert code == 2
    assert "no log of attempt 2, node 1" in err


@pytest.fixture
def in_zone(monkeypatch):
    """Return what sets this process's time zone."""

    def become(zone):
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield become
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("zone", "change"),
    [
        ("America/New_York", datetime(2026, 11, 1, 6, tzinfo=timezone.utc)),
        ("Europe/Berlin", datetime(2026, 3, 29, 1, tzinfo=timezone.utc)),
        ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=timezone.utc)),
    ],
)
def test_an_hour_that_is_twice_or_never_there_changes_no_duration(
    orchestrate, tmp_path, in_zone, zone, change
):
    url, since = (tmp_path / "store").as_uri(), (change - at(25)).total_seconds()
    folder = open_store(f"{url}/demo")
    create_record(folder, make_record(store=url).model_copy(update={"created_at": at(since)}))
    ledger = Ledger()
    ledger.launched(since)
    ledger.launch("one", since + 1, until=since + 20, attempt=1)
    ledger.commit(since + 12, attempt=1, step=4)
    ledger.launch("two", since + 21, until=since + 50, attempt=2, step=4)
    ledger.ended(since + 50)
    for entry in ledger.entries:
        key = event_key(entry.writer, entry.number)
        folder.create(key, entry.model_dump_json().encode())
    told = []
    for place in ("UTC", zone):
        in_zone(place)
        for command in ("status", "cost"):
            code, out, err = orchestrate(command, "demo", "--store", url, "--json")
            assert code == 0, err
            told.append({**json.loads(out), "as_of": None})  # each looks at its own instant
    assert told[2:] == told[:2]
    seconds = told[1]["seconds"].values()
    assert sum(seconds) == told[1]["wall_seconds"] == 50
    assert min(seconds) >= 0
    offsets = {at(since + second).astimezone().utcoffset() for second in (0, 50)}
    record_fault("F10", "the local clock is put back or forward", injected=len(offsets) - 1)


def every_command(command, path):
    """Yield every command and group with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                yield from every_command(inner, f"{path} {name}")


EVERY_COMMAND = dict(every_command(cli_module.cli, "orchestrate"))


@pytest.mark.parametrize("path", EVERY_COMMAND)
def test_every_help_ends_with_an_example_of_the_command(orchestrate, path):
    code, out, _ = orchestrate(*path.split()[1:], "--help")
    last = out.rstrip().split("\n\n")[-2 if path == "orchestrate" else -1]
    assert code == 0
    assert "Options:" not in last
    assert re.search(rf"^  .*{path}( |$)", last, re.MULTILINE)


def test_help_names_only_what_checkpoints_can_do(orchestrate):
    _, out, _ = orchestrate("--help")
    (summary,) = re.findall(r"^  checkpoints  (.*(?:\n {4,}.*)*)", out, re.MULTILINE)
    verbs = re.findall(r"[a-z]+", summary.lower().partition(" checkpoints")[0])
    names = {path.split()[-1] for path in EVERY_COMMAND if path.startswith("orchestrate check")}
    assert set(verbs) - {"and"} <= names
    assert len(verbs) > 4
