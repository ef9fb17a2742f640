"""What is no input, on the command line: two lines and exit code 2, soon, whatever it was."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from checkpoints.delta_record import DELTA_NAME, read_record
from checkpoints.errors import RecordInvalid
from orchestrator.card.provenance import data_used
from orchestrator.errors import InputError
from tests.orchestrator.histories import make_record

SPEC = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
CLOUDS = SPEC.with_name("vicuna-7b.yaml")
ADDRESSES = ("http://[::1", "http://[zz]/v1", "http://a:x/v1", "http://..")


@pytest.fixture
def refused(orchestrate):
    """Give a command that has to be refused; returns what it said."""

    def run(*arguments: object) -> str:
        code, out, err = orchestrate(*arguments)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 2
        return err

    return run


@pytest.fixture
def question(monkeypatch, tmp_path):
    """Have a question on stdin."""
    path = tmp_path / "question"
    path.write_text("Hello?")
    with path.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        yield


@pytest.mark.usefixtures("question")
@pytest.mark.parametrize("url", ADDRESSES)
def test_chat_names_an_address_that_is_none(refused, url):
    assert "is no URL" in refused("chat", url, "--model", "m")


@pytest.mark.parametrize("url", ADDRESSES)
@pytest.mark.parametrize("place", ["--judge", "--baseline", "MODEL"])
def test_eval_names_an_address_that_is_none(refused, tmp_path, place, url):
    asked = [f"{url}#m"] if place == "MODEL" else ["http://127.0.0.1:1/v1#m", place, f"{url}#m"]
    assert "is no URL" in refused("eval", *asked, "--output", tmp_path / "ev", "--yes")


@pytest.mark.parametrize("url", ADDRESSES)
def test_plan_names_an_address_of_data_that_is_none(refused, url):
    assert "data.train" in refused("plan", SPEC, "--set", f"data.train={url}/d.json")


@pytest.mark.parametrize(
    "arguments",
    [
        ("chat", "http://192.0.2.1/v1", "--model", "m"),
        ("plan", SPEC, "--set", "data.train=https://192.0.2.1/d.json"),
        ("eval", "http://192.0.2.1/v1", "--yes"),
    ],
)
@pytest.mark.usefixtures("question")
def test_a_proxy_that_is_none_is_named(refused, monkeypatch, arguments):
    monkeypatch.setenv("HTTPS_PROXY", "http://[zz]:1")
    assert "HTTPS_PROXY" in refused(*arguments)


@pytest.mark.parametrize("url", ["http://..", "http://a:x"])
def test_augmenting_names_an_endpoint_that_is_none(refused, tmp_path, url):
    source = SPEC.with_name("conversations.json")
    asked = ("--augment", "paraphrase", "--endpoint", url, "--model", "m")
    assert "is no URL" in refused("data", "prepare", source, tmp_path / "out.jsonl", *asked)


def test_an_endpoint_of_the_store_that_is_none_is_named(refused, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://[::1")
    assert "AWS_ENDPOINT_URL" in refused("status", "x", "--store", "s3://a/b")


@pytest.fixture(params=["pipe", "device"])
def endless(request, tmp_path) -> Path:
    """A path whose file has no end, or no beginning."""
    path = tmp_path / "endless.json"
    if request.param == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("command", ["plan", "launch", "doctor", "simulate"])
def test_a_spec_that_has_no_end_is_not_read(refused, endless, command):
    assert "not a regular file" in refused(command, endless)


def test_a_spec_of_the_kernel_s_is_read_to_the_bound(refused, monkeypatch):
    monkeypatch.setattr("orchestrator.spec_file.MAX_SPEC_BYTES", 10)
    assert "more than 10 bytes" in refused("plan", "/proc/self/maps")


@pytest.mark.parametrize("command", ["plan", "simulate"])
def test_a_trace_that_has_no_end_is_not_read(refused, endless, command):
    options = () if command == "plan" else ("--work", "1h", "--deadline", "3h")
    said = refused(command, CLOUDS, "--traces", endless.parent, *options)
    assert "not a regular file" in said


@pytest.mark.parametrize("option", ["--questions", "--reviews"])
def test_questions_that_have_no_end_are_not_read(refused, endless, option):
    asked = () if option == "--reviews" else ("http://127.0.0.1:1/v1#m",)
    assert "not a regular file" in refused("eval", *asked, option, endless, "--yes")


def test_answers_that_have_no_end_are_not_read(refused, endless):
    answers = endless.rename(endless.with_suffix(".jsonl"))
    assert "not a regular file" in refused("eval", answers, "--yes")


@pytest.mark.parametrize("command", ["show", "prepare"])
def test_conversations_that_have_no_end_are_not_read(refused, tmp_path, endless, command):
    output = () if command == "show" else (tmp_path / "out.jsonl",)
    assert "not a regular file" in refused("data", command, endless, *output)


def test_addresses_for_messages_that_have_no_end_are_not_read(refused, tmp_path, endless):
    (tmp_path / "home").mkdir()
    endless.rename(tmp_path / "home" / "notify")
    assert "not a regular file" in refused("doctor", "--notify")


def test_what_says_how_data_was_cleaned_is_not_read_without_end(tmp_path, endless):
    with pytest.raises(InputError, match="not a regular file"):
        data_used(tmp_path, make_record(), endless)


def test_a_delta_s_record_is_not_read_without_end(endless):
    shutil.move(endless, endless.with_name(DELTA_NAME))
    with pytest.raises(RecordInvalid, match="not a regular file"):
        read_record(endless.parent)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        (("simulate", SPEC, "--starts"), ("1000000000000", "0")),
        (("simulate", SPEC, "--nodes"), ("99999999999999", "0")),
        (("simulate", SPEC, "--spot-price"), ("nan", "inf", "1e308")),
        (("eval", "m", "--timeout"), ("nan", "inf", "1e308")),
        (("eval", "m", "--budget-usd"), ("nan", "inf", "1e308")),
        (("eval", "m", "--max-tokens"), (10**30,)),
        (("eval", "m", "--first"), (10**30,)),
        (("serve", "m", "--drain"), (10**30,)),
        (("serve", "m", "--replicas"), (10**30,)),
        (("serve", "m", "--max-replicas"), (10**30,)),
        (("serve", "m", "--max-queued"), (10**30,)),
        (("serve", "m", "--max-concurrent"), (10**30,)),
        (("serve", "m", "--requests-per-replica"), ("nan", "inf")),
        (("chat", "http://127.0.0.1:1", "--temperature"), ("nan", "inf")),
        (("chat", "http://127.0.0.1:1", "--max-tokens"), (10**30,)),
        (("data", "prepare", "in", "out", "--workers"), (10**30,)),
        (("data", "prepare", "in", "out", "--share"), ("nan", "2")),
        (("data", "prepare", "in", "out", "--budget-usd"), ("nan", "inf")),
        (("data", "prepare", "in", "out", "--usd-per-million-tokens"), ("nan", "inf")),
        (("checkpoints", "prune", "x", "--keep-last"), (10**30,)),
        (("checkpoints", "prune", "x", "--keep-every"), (10**30,)),
    ],
)
def test_a_number_that_nobody_means_is_refused_by_its_option(refused, option, values):
    for value in values:
        assert str(option[-1]) in refused(*option, value)


@pytest.mark.parametrize("number", ["9" * 6000, "0x" + "f" * 6000, "1:" * 3000 + "1"])
def test_a_number_of_thousands_of_digits_is_refused_in_our_words(refused, tmp_path, number):
    path = tmp_path / "run.yaml"
    path.write_text(f"{SPEC.read_text()}\nx: {number}\n")
    for said in (refused("plan", path), refused("plan", SPEC, "--set", f"train.seed={number}")):
        assert "more than 100 digits" in said
        assert "sys." not in said


@pytest.mark.parametrize("command", [("dashboard",), ("serve", "--local", "m")])
@pytest.mark.parametrize("host", ["..", "a" * 300, "\xe9" * 100, "999.1.1.1"])
def test_a_host_to_listen_at_that_is_none_is_named(refused, command, host):
    assert "no address of this machine" in refused(*command, "--host", host, "--port", 0)


@pytest.mark.parametrize("option", ["--status", "--down"])
def test_what_no_service_can_be_called_is_refused_before_skypilot_is_asked(refused, option):
    assert "service's name" in refused("serve", option, "../..")


@pytest.mark.parametrize("output", ["/dev/null", "/dev/null/x"])
def test_an_evaluation_that_could_not_be_kept_asks_nobody(refused, output):
    asked = ("eval", "http://127.0.0.1:1/v1#m", "--output", output, "--first", 1, "--yes")
    assert "Cannot make /dev/null" in refused(*asked)


@pytest.mark.parametrize("name", ["x" * 250, "missing/x"])
def test_prepared_data_that_could_not_be_written_is_one_error(refused, tmp_path, name):
    source = SPEC.with_name("conversations.json")
    assert str(tmp_path) in refused("data", "prepare", source, tmp_path / name)


def test_an_argument_that_is_no_text_is_named(refused):
    assert r"\udcff" in refused("data", "show", "o\udcff")
