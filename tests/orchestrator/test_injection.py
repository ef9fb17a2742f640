"""Names and texts of others reach out of no folder, into no shell and into no terminal."""

from __future__ import annotations

import itertools
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from checkpoints.layout import log_key
from checkpoints.manifest import ObjectRecord, TensorRecord
from checkpoints.store import open_store
from orchestrator.cloud.skypilot.environment import STORE_SETTINGS
from orchestrator.cloud.skypilot.task import read_task, settings
from orchestrator.errors import UsageError
from orchestrator.inputs import InputFile, fetch_inputs
from orchestrator.spec import RUN_NAME
from tests.checkpoints.test_manifest import small_manifest
from tests.fault_record import record_fault
from tests.orchestrator.histories import make_spec
from tests.orchestrator.test_dashboard_server import write_run

OUTSIDE = [
    "..",
    ".",
    "../x",
    "/etc/x",
    "a/b",
    "a/../../x",
    "",
    "a\0b",
    "a\nb",
    "a\x1b[31m",
    "x" * 300,
]
ESCAPES = "\x1b]0;title\x07\x1b[2J\x1b]52;c;aWQ=\x07\x9b31m\r"


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_file_of_a_run_has_a_name_that_leaves_its_folder(tmp_path, name):
    refused = []
    with pytest.raises(ValidationError) as caught:
        InputFile(name=name, sha256="0" * 64, size=0)
    refused.append(caught)
    # As a record would hold it that was written by others.
    forged = InputFile.model_construct(name=name, sha256="0" * 64, size=0)
    with pytest.raises(ValidationError) as caught:
        fetch_inputs(
            (InputFile.model_validate_json(forged.model_dump_json()),),
            open_store(tmp_path.as_uri()),
            tmp_path / "node",
        )
    refused.append(caught)
    assert list(tmp_path.iterdir()) == []
    record_fault("F25", "names of files that leave their folder", injected=len(refused))


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "a/b",
        "../a",
        "A",
        "a.b",
        "-a",
        "a b",
        "a\n",
        "\u0430",
        "a" * 49,
        "a;id",
        "$(id)",
        "a\0",
    ],
)
def test_a_run_has_a_name_that_is_safe_everywhere(name, orchestrate):
    with pytest.raises(ValidationError) as caught:
        make_spec(name=name)
    refused = [caught.value]
    for command in ("status", "cost", "logs"):
        if not name.startswith("-") and "\0" not in name:
            code, _, err = orchestrate(command, name)
            assert (code, len(err.splitlines())) == (2, 2)
            refused.append(err)
    record_fault("F25", "names of runs that are more than a name", injected=len(refused))
    assert "." not in RUN_NAME.replace("[a-z0-9-]", "")


@pytest.mark.parametrize("word", ["a/../b", "a\nb", "a?x=1", "a#b", "a\x1b[31m", "", "x" * 200])
def test_a_name_in_w_and_b_is_no_address_and_no_text_of_its_own(word):
    refused = []
    for names in ({"project": word}, {"project": "p", "entity": word}):
        with pytest.raises(ValidationError) as caught:
            make_spec(tracking={"wandb": names})
        refused.append(caught)
    kept = make_spec(tracking={"wandb": {"project": "Große Läufe 2", "entity": "my-team_1.x"}})
    assert kept.tracking.wandb.project == "Große Läufe 2"
    record_fault("F25", "names of W&B projects and teams", injected=len(refused))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join(['*' + before] * 9)}]\n"
    for before, after in itertools.pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch pwned']\n",
        "name: !!python/name:os.system\n",
        "name: a\nname: b\n",
        "name: &x [*x]\n",
        BOMB,
        "<<: {name: a}\nextra: 1\n",
        "name: a\n---\nname: b\n",
    ],
    ids=["call", "object", "twice", "endless", "bomb", "merge", "two documents"],
)
def test_no_yaml_does_anything(tmp_path, orchestrate, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    spec = tmp_path / "run.yaml"
    spec.write_text(text)
    refused = []
    for command in (("plan", spec), ("launch", spec, "--yes")):
        code, out, err = orchestrate(*command)
        assert (code, out, len(err.splitlines())) == (2, "", 2)
        refused.append(err)
    assert list(tmp_path.iterdir()) == [spec]
    record_fault("F25", "YAML that calls, repeats or explodes", injected=len(refused))


@pytest.mark.parametrize(
    "key", ["../../secret", "/etc/passwd", "a/../../secret", "checkpoints/../x"]
)
def test_a_manifest_reads_nothing_out_of_the_run_s_folder(tmp_path, key):
    (tmp_path / "secret").write_bytes(bytes(32))
    chunk = small_manifest().tensors["w"].chunks[0].model_copy(update={"object": key})
    with pytest.raises(ValidationError):
        small_manifest(
            objects=(ObjectRecord(key=key, size=32),),
            tensors={"w": TensorRecord(dtype="F32", shape=(2, 3), chunks=(chunk,))},
        )


def test_what_others_put_beside_the_objects_breaks_nothing(tmp_path):
    store = open_store((tmp_path / "run").as_uri())
    store.put("checkpoints/step-00000001.a001/rank", b"x")
    strange = tmp_path / "run" / "checkpoints" / "step-00000001.a001" / "note #1*.txt"
    strange.write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("mine")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "elsewhere")
    keys = [entry.key for entry in store.list("")]
    assert keys == ["checkpoints/step-00000001.a001/rank"]
    store.delete(keys)
    assert strange.read_text() == (tmp_path / "elsewhere" / "kept").read_text() == "mine"


@pytest.mark.parametrize("key", ["store", "data.train", "checkpoints.stores.aws/us-east-1"])
def test_an_address_with_a_password_never_gets_into_a_spec(tmp_path, orchestrate, key):
    spec = tmp_path / "run.yaml"
    spec.write_text(
        "name: a\nstore: s3://b/runs\ninfra: [aws]\nmodel: {base: a/b}\ndata: {train: s3://b/c.json}\n"
        "limits: {budget_usd: 1}\n"
    )
    *parents, last = key.split(".")
    value = "{" * len(parents[:-1]) + "s3://me:hunter2@host/x"
    change = (
        f"{key}={value}"
        if not parents or last == "train"
        else ("checkpoints.stores={aws/us-east-1: 's3://me:hunter2@host/x'}")
    )
    code, out, err = orchestrate("plan", spec, "--offline", "--set", change)
    assert code == 2
    assert "password" in err
    assert "hunter2" not in out + err


HOSTILE = "memory://$(touch$IFS'pwned')`touch pwned`\"; touch pwned; \"/a b"


def test_no_value_of_a_task_is_a_command_of_its_script(tmp_path):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    uv = tmp_path / "bin" / "uv"
    target = '"$HOME/orchestrate-env/bin"'
    uv.write_text(f"#!/bin/sh\nmkdir -p {target}\ncp {python} {target}\n")
    for path in (python, uv):
        path.chmod(0o755)
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "ORCHESTRATE_RUN_FOLDER": HOSTILE,
        "ORCHESTRATE_WHEEL": "$(touch pwned)`touch pwned`'.whl",
        "ORCHESTRATE_WHEEL_SHA256": "'; touch pwned; '",
        "ORCHESTRATE_EXTRAS": "train",
    }
    done = subprocess.run(
        ["bash", "-c", read_task("train.yaml")["setup"]],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "obstore" in done.stderr  # it came as far as to ask for the wheel
    assert not list(tmp_path.rglob("pwned"))


def in_terminal(*arguments: object) -> bytes:
    """Return what the command line writes to a terminal."""
    program, seen = str(Path(sys.executable).with_name("orchestrate")), b""
    pid, screen = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(program, [program, *map(str, arguments)])
    try:
        while data := os.read(screen, 65536):
            seen += data
    except OSError:  # as Linux says that the other end is closed
        pass
    os.waitpid(pid, 0)
    os.close(screen)
    return seen


def test_a_log_does_nothing_to_a_terminal_and_a_file_gets_it_as_it_is(tmp_path, orchestrate):
    write_run(tmp_path, "one")
    store = open_store(f"{tmp_path.as_uri()}/one")
    line = f"step 1 {ESCAPES}\n"
    store.create(log_key(1, "00000000.log"), line.encode())
    seen = in_terminal("logs", "one", "--store", tmp_path)
    assert b"step 1" in seen
    for escape in (b"\x1b", b"\x07", b"\xc2\x9b"):
        assert escape not in seen
    _, out, _ = orchestrate("logs", "one", "--store", tmp_path)
    assert ESCAPES in out
    hostile = sum(line.count(one) for one in "\x1b\x07\x9b\r")
    record_fault("F25", "lines of logs that command a terminal", injected=hostile)


def test_an_error_is_two_lines_that_do_nothing_to_a_terminal(tmp_path, orchestrate):
    code, _, err = orchestrate("plan", tmp_path / f"a\n{ESCAPES}b")
    assert code == 2
    assert len(err.splitlines()) == 2
    assert not set(err) & set("\x1b\x07\x9b\r")


def test_json_has_no_control_character_either(tmp_path, orchestrate):
    write_run(tmp_path, "one", why=ESCAPES)
    code, out, _ = orchestrate("status", "one", "--store", tmp_path, "--json")
    assert code == 0
    assert not set(out) & set("\x1b\x07\x9b\r")


def test_a_setting_with_a_password_is_not_forwarded_as_one_that_is_shown(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://minio.example:9000")
    assert settings(STORE_SETTINGS)["AWS_ENDPOINT_URL_S3"] == "http://minio.example:9000"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://me:hunter2@minio.example:9000")
    with pytest.raises(UsageError) as refused:
        settings(STORE_SETTINGS)
    assert "hunter2" not in f"{refused.value.what} {refused.value.next_step}"
