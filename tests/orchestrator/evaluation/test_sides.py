"""What a user names: runs that go on, folders, addresses; and what tells each from any other."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from checkpoints.store import open_store
from orchestrator.attempts import StopReason
from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.evaluation.sides import Role, asking, find_side
from orchestrator.ledger.facts import Entry, FinalState, RunEnded
from orchestrator.view import RunViewer
from tests.orchestrator.histories import START, at
from tests.released_run import make_released_run, make_weights


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint that goes on: without its last fact, the end."""
    folder = make_released_run((tmp_path / "store").as_uri(), tmp_path, make_weights(1))
    keys = [one.key for one in folder.list("events/")]
    folder.delete(key for key in keys if b"run_ended" in folder.get(key).data)
    return folder


def test_a_checkpoint_of_a_run_that_goes_on_is_a_model(run):
    assert RunViewer(run).look(at(100)).state.ended is None
    found = find_side("demo", Role.MODEL, None, None)
    assert (found.side.run, found.side.step) == ("demo", run_step(run))
    assert (found.served.folder / "config.json").is_file()
    again = find_side(f"tuned=demo@{run_step(run)}", Role.BASELINE, None, None)
    assert again.identity == found.identity
    assert again.side.name == "tuned"
    with pytest.raises(UsageError, match="no checkpoint of step 7"):
        find_side("demo@7", Role.MODEL, None, None)


def run_step(folder):
    return json.loads(folder.get("HEAD.json").data)["step"]


def test_two_commands_at_once_share_one_export(run):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: find_side("demo", Role.MODEL, None, None), range(4)))
    assert len({one.served.folder for one in found}) == 1


def test_a_deleted_run_leaves_no_copy_of_its_weights(run, orchestrate):
    folder = find_side("demo", Role.MODEL, None, None).served.folder
    end = RunEnded(
        state=FinalState.STOPPED, reason=StopReason.REQUESTED, why="a test", launched_at=START
    )
    entry = Entry(writer="w-end", number=0, at=at(200), body=end)
    run.create("events/w-end/00000000.jsonl", entry.model_dump_json().encode())
    code, _, err = orchestrate("delete", "demo", "--confirm", "demo")
    assert code == 0, err
    assert not folder.exists()


def test_a_folder_that_was_changed_is_another_model_wherever_it_lies(run, tmp_path):
    folder = find_side("demo", Role.MODEL, None, None).served.folder
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    before = find_side(str(copy), Role.MODEL, None, None)
    (copy / "README.md").write_text("A note.")
    assert before.identity == find_side(str(copy), Role.MODEL, None, None).identity
    elsewhere = shutil.copytree(copy, tmp_path / "elsewhere")
    assert before.identity == find_side(str(elsewhere), Role.MODEL, None, None).identity
    (copy / "config.json").write_text("{} ")
    assert find_side(str(copy), Role.MODEL, None, None).identity != before.identity


def test_a_role_has_its_own_key_and_openais_goes_to_openai_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "openais")
    openai = find_side("https://api.openai.com/v1#gpt", Role.JUDGE, None, None)
    other = find_side("https://example.com/v1#gpt", Role.JUDGE, None, None)
    fake = find_side("https://api.openai.com.example.com/v1#gpt", Role.JUDGE, None, None)
    assert (openai.key(), other.key(), fake.key()) == ("openais", None, None)
    monkeypatch.setenv("ORCHESTRATE_JUDGE_API_KEY", "judges")
    assert other.key() == "judges"
    assert find_side("https://example.com/v1#gpt", Role.MODEL, None, None).key() is None


def test_only_what_runs_here_costs_nothing():
    assert not find_side("http://127.0.0.1:1/v1#m", Role.JUDGE, None, None).costs
    assert not find_side("http://localhost:1/v1#m", Role.JUDGE, None, None).costs
    assert find_side("http://10.0.0.1:1/v1#m", Role.JUDGE, None, None).costs
    assert find_side("https://localhost.example.com/v1#m", Role.JUDGE, None, None).costs


def test_nothing_is_served_before_something_is_asked(run, tmp_path):
    found = find_side("demo", Role.MODEL, None, None)
    said = []
    with asking(found, open_store(tmp_path.as_uri()), None, said.append):
        assert said == []


@pytest.mark.parametrize(
    "text", ["", "=", "a=", "http://", "https:///v1#m", "nowhere/at/all", "x y"]
)
def test_what_names_nothing_is_refused(text):
    with pytest.raises(OrchestratorError) as refused:
        find_side(text, Role.MODEL, None, 0.1)
    assert refused.value.exit_code == 2
