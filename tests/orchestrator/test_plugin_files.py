"""`doctor --fix`: SkyPilot's files gain our plugin, and lose nothing of the user's."""

import re
from pathlib import Path

import pytest
import yaml

from orchestrator.cloud.skypilot.plugin_files import PLUGIN_CLASS, plan_changes

OURS = {"class": PLUGIN_CLASS}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYPILOT_SERVER_PLUGINS_CONFIG", str(tmp_path / "plugins.yaml"))
    monkeypatch.setenv("SKYPILOT_SERVER_REMOTE_PLUGINS_CONFIG", str(tmp_path / "remote.yaml"))
    monkeypatch.setenv("SKYPILOT_GLOBAL_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.delenv("SKYPILOT_API_SERVER_ENDPOINT", raising=False)
    return tmp_path


def fix(orchestrate):
    code, out, err = orchestrate("doctor", "--fix", "--yes")
    assert code == 0, err
    return out, err


def test_a_machine_without_files_gets_them_and_a_wheel(orchestrate, files):
    out, _ = fix(orchestrate)
    server, remote = (
        yaml.safe_load((files / n).read_text()) for n in ("plugins.yaml", "remote.yaml")
    )
    assert server["plugins"] == remote["plugins"] == [OURS]
    (wheel,) = Path(server["controller_wheel_path"]).glob("*.whl")
    assert f"+ {wheel}" in out
    assert "+- class: orchestrator.cloud.plugin.OrchestratePlugin" in out
    assert not list(files.glob("*.bak"))


def test_again_changes_nothing(orchestrate, files):
    fix(orchestrate)
    before = {file: file.read_bytes() for file in files.rglob("*") if file.is_file()}
    out, err = fix(orchestrate)
    assert (out, "nothing to change" in err) == ("", True)
    assert before == {file: file.read_bytes() for file in files.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "text",
    [
        "# mine\nplugins:  # all\n  # 1st\n  - class: a.B  # b\n    parameters: {x: 1}\n\n# end\n",
        "plugins:\n- {class: a.B}\n- class: c.D\n",
        "# mine\nplugins: [{class: a.B}]  # flow\n",
        "plugins: []\n# end",
        "controller_wheel_path: WHEELS # here\nplugins:\n- class: a.B\n",
        "controller_wheel_path: WHEELS",
        "# nothing but words\n",
        "",
    ],
)
def test_what_the_user_wrote_stays(orchestrate, files, text):
    text = text.replace("WHEELS", str(files / "wheels"))
    (files / "plugins.yaml").write_text(text)
    fix(orchestrate)
    after = (files / "plugins.yaml").read_text()
    found, wanted = yaml.safe_load(after), yaml.safe_load(text) or {}
    assert found.pop("plugins") == [OURS, *(wanted.pop("plugins", None) or [])]
    folder = found.pop("controller_wheel_path")
    assert folder == wanted.pop("controller_wheel_path", folder)
    assert list(Path(folder).glob("spot_orchestrator-*.whl"))
    words = iter(re.findall(r"[^\s\[\]{},]+", after))
    assert all(word in words for word in re.findall(r"[^\s\[\]{},]+", text))  # in their order
    assert (files / "plugins.yaml.bak").read_text() == text


@pytest.mark.parametrize("text", ["{plugins: [{class: a.B}]}", "plugins:\n", "plugins: null\n"])
def test_what_cannot_be_edited_in_place_keeps_its_meaning(orchestrate, files, text):
    (files / "plugins.yaml").write_text(text)
    fix(orchestrate)
    found = yaml.safe_load((files / "plugins.yaml").read_text())
    assert found["plugins"] == [OURS, *(yaml.safe_load(text)["plugins"] or [])]


def test_an_entry_with_parameters_of_the_user_s_is_ours_already(orchestrate, files):
    fix(orchestrate)
    text = (files / "remote.yaml").read_text() + "  parameters: {tick_seconds: 5}\n"
    (files / "remote.yaml").write_text(text)
    assert plan_changes() == []


def test_a_new_wheel_replaces_older_ones_of_ours_only(orchestrate, files):
    folder = files / "wheels"
    folder.mkdir()
    old, other = (
        folder / "spot_orchestrator-0.0.1-py3-none-any.whl",
        folder / "x-1-py3-none-any.whl",
    )
    old.touch(), other.touch()
    (files / "plugins.yaml").write_text(f"controller_wheel_path: {folder}\n")
    out, _ = fix(orchestrate)
    assert f"- {old}" in out
    assert not old.exists()
    assert other.exists()


@pytest.mark.parametrize("text", ["{", "- a\n", "plugins: {a: b}\n", "\x00"])
def test_files_that_make_no_sense_are_left_alone(orchestrate, files, text):
    (files / "plugins.yaml").write_text(text)
    code, out, err = orchestrate("doctor", "--fix", "--yes")
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 2
    assert (files / "plugins.yaml").read_text() == text


def test_nothing_is_changed_unasked(orchestrate, files):
    code, out, err = orchestrate("doctor", "--fix")
    assert code == 2
    assert "--yes" in err
    assert "+plugins:" in out  # it was shown
    assert not (files / "plugins.yaml").exists()


def test_a_server_elsewhere_is_not_fixed_here(orchestrate, files, monkeypatch):
    (files / "config.yaml").write_text("api_server: {endpoint: https://sky.example.com}\n")
    assert orchestrate("doctor", "--fix", "--yes")[0] == 2
    monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", "http://127.0.0.1:46580")
    assert orchestrate("doctor", "--fix", "--yes")[0] == 0


def test_a_second_change_keeps_the_first_backup(orchestrate, files):
    (files / "plugins.yaml").write_text("# mine\n")
    fix(orchestrate)
    (files / "plugins.yaml").write_text("# mine, again\n")
    fix(orchestrate)
    assert (files / "plugins.yaml.bak").read_text() == "# mine\n"
    assert (files / "plugins.yaml.bak2").read_text() == "# mine, again\n"
