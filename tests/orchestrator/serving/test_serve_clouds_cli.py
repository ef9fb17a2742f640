"""`orchestrate serve` on clouds: what is refused before any cloud is asked."""

from __future__ import annotations

import pytest

from checkpoints.store import open_store
from orchestrator.home import run_key
from orchestrator.ledger.record import create_record
from orchestrator.runs import remember_run
from tests.orchestrator.histories import make_record

KEY = "ORCHESTRATE_SERVE_API_KEY"


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w")
    return folder


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv(KEY, "sekrit")


def test_a_service_that_anybody_can_reach_needs_a_key(orchestrate, model, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    code, _, err = orchestrate("serve", model, "--store", "s3://b/runs")
    assert code == 2
    assert f"export {KEY}=" in err


@pytest.mark.usefixtures("key")
def test_a_folder_needs_a_bucket(orchestrate, model):
    code, _, err = orchestrate("serve", model)
    assert code == 2
    assert "--store s3://bucket/prefix" in err
    code, _, err = orchestrate("serve", model, "--store", "/tmp/runs")
    assert code == 2
    assert "nodes on clouds cannot read" in err


@pytest.mark.usefixtures("key")
def test_a_run_on_this_machine_is_refused(orchestrate, tmp_path):
    url = (tmp_path / "runs").as_uri()
    create_record(open_store(f"{url}/demo"), make_record(store=url))
    remember_run(tmp_path / "home" / "runs" / run_key(url, "demo"), "demo", url)
    code, _, err = orchestrate("serve", "demo", "--accelerators", "A100:1")
    assert code == 2
    assert "checkpoints export" in err


@pytest.mark.usefixtures("key")
def test_which_gpus_is_for_the_user_to_say(orchestrate, model):
    code, _, err = orchestrate("serve", model, "--store", "s3://b/runs")
    assert code == 2
    assert "--accelerators KIND:COUNT" in err
    assert "What would fit: A100:1" in err


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--replicas", "3", "--max-replicas", "2"], "is less than --replicas 3"),
        (["--max-replicas", "2"], "goes with --requests-per-replica"),
        (["--requests-per-replica", "2"], "goes with --requests-per-replica"),
    ],
)
def test_how_many_replicas_has_to_make_sense(orchestrate, model, words, said):
    asked = ["serve", model, "--store", "s3://b/runs", "--accelerators", "A100:1"]
    code, _, err = orchestrate(*asked, *words)
    assert code == 2
    assert said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["m", "--port", "1"], "--port is only of use with --local"),
        (["m", "--local", "--name", "x"], "--name is only of use without --local"),
        (["--status", "--down", "x"], "not both"),
        (["m", "--json"], "--json goes with --status"),
        ([], "Missing argument 'MODEL...'"),
        (["--local"], "Missing argument 'MODEL...'"),
        (["--down"], "Missing argument 'MODEL...'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(orchestrate, words, said):
    code, _, err = orchestrate("serve", *words)
    assert code == 2
    assert said in err
