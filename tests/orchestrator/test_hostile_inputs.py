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


@pytest.mark.parametrize("key", ["data.train", "model.base"])
def test_a_path_that_no_file_can_have_is_named(refused, key):
    assert "too long" in refused("plan", SPEC, "--set", f"{key}={'9' * 300}/d")


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
        (("simulate", SPEC, "--spot-price"), ("inf", "1e308")),
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


@pytest.mark.parametrize("command", [("serve", "--local"), ("eval", "--yes")])
@pytest.mark.parametrize(
    "model", ["~nobody-here/x", "~nobody-here", "x" * 5000, "y=a/" + "x" * 5000]
)
def test_a_model_whose_path_nobody_can_have_is_refused(orchestrate, command, model):
    code, out, err = orchestrate(*command, model)
    assert (code, out) == (2, "")
    assert model.rpartition("=")[2] in err.splitlines()[-2]


def test_a_profile_below_the_home_of_nobody_is_named(refused, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "~nobody-here/config")
    assert "AWS_CONFIG_FILE" in refused("status", "x", "--store", "s3://a/b")


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


@pytest.mark.parametrize("key", ["\xe9", "a\nb"])
def test_a_key_that_no_header_can_hold_is_said_without_it(refused, tmp_path, monkeypatch, key):
    for name in ("OPENAI_API_KEY", "ORCHESTRATE_MODEL_API_KEY"):
        monkeypatch.setenv(name, f"secret{key}")
    endpoint = ("--augment", "paraphrase", "--endpoint", "http://127.0.0.1:1", "--model", "m")
    source = SPEC.with_name("conversations.json")
    for said in (
        refused("eval", "http://127.0.0.1:1", "--yes"),
        refused("data", "prepare", source, tmp_path / "out", *endpoint),
    ):
        assert "no header can hold" in said
        assert "secret" not in said


@pytest.mark.usefixtures("question")
def test_certificates_that_cannot_be_read_are_said(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(SPEC))
    endpoint = ("--augment", "paraphrase", "--endpoint", "http://127.0.0.1:1", "--model", "m")
    source = SPEC.with_name("conversations.json")
    assert "certificates" in refused("chat", "https://192.0.2.1/v1", "--model", "m")
    assert "certificates" in refused("data", "prepare", source, tmp_path / "out", *endpoint)
    data = ("--set", "data.train=https://192.0.2.1/d.json")
    assert "cannot be fetched" in refused("plan", SPEC, *data)


@pytest.mark.parametrize(
    "command",
    [("plan", SPEC, "--set", "data.train={}"), ("data", "show", "{}"), ("data", "prepare", "{}")],
)
def test_data_that_does_not_say_how_long_it_is_is_not_read(refused, tmp_path, command):
    output = (tmp_path / "out",) if "prepare" in command else ()
    given = [str(word).format("/proc/self/pagemap") for word in command]
    assert "how long" in refused(*given, *output)


@pytest.mark.parametrize("name", ["x" * 5000, "\xe9" * 300])
def test_an_address_of_data_may_end_in_a_name_that_no_file_can_have(refused, name):
    data = f"data.train=http://127.0.0.1:1/{name}"
    assert "cannot be fetched" in refused("plan", SPEC, "--set", data)


def test_a_what_if_has_so_many_values_that_it_ends(refused):
    values = ",".join(f"{hours}h" for hours in range(3, 3000))
    assert "at most 24 values" in refused("simulate", SPEC, "--what-if", f"deadline={values}")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_has_no_end_is_not_read(refused, tmp_path, name):
    model = shutil.copytree(SPEC.with_name("tiny-llama"), tmp_path / "model")
    for other in ("tokenizer.json", "tokenizer_config.json"):
        (model / other).write_text("{}")
    (model / name).unlink()
    os.mkfifo(model / name)
    source = SPEC.with_name("conversations.json")
    assert "not a regular file" in refused("data", "show", source, "--tokenizer", model)


@pytest.mark.parametrize("text", [None, "[" * 100_000])
def test_a_model_s_configuration_that_is_none_is_one_error(refused, tmp_path, text):
    model = shutil.copytree(SPEC.with_name("tiny-llama"), tmp_path / "model")
    (model / "config.json").unlink()
    if text is None:
        os.mkfifo(model / "config.json")
    else:
        (model / "config.json").write_text(text)
    assert "config.json" in refused("plan", SPEC, "--set", f"model.base={model}")
