"""What is no input, on the command line: two lines and exit code 2, soon, whatever it was."""

from __future__ import annotations

from pathlib import Path

import pytest

SPEC = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
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
