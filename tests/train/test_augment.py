"""Augmentation against a real server on the loopback: answers, failures, budget, cache."""

import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from train.data.augment import Augmentation, Method, augment_file
from train.data.endpoint import Budget, Endpoint
from train.errors import EndpointFailed, EndpointRefused

QUESTION = "What is the answer to question {}, please?".format


class Model:
    """A server that puts every question in other words, unless a status is due first."""

    def __init__(self):
        self.asked, self.keys, self.due = [], [], []
        self.answer = lambda text: f"In other words: {text}"
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                model.asked.append(body)
                model.keys.append(self.headers.get("authorization"))
                status = model.due.pop(0) if model.due else 200
                text = model.answer(body["messages"][-1]["content"])
                content = {
                    "choices": [{"message": {"content": text}}],
                    "usage": {"total_tokens": 100},
                }
                payload = json.dumps(content).encode() if status == 200 else b"no\nway"
                self.send_response(status)
                self.send_header("content-length", str(len(payload)))
                if status == 429:
                    self.send_header("retry-after", "7")
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def model():
    model = Model()
    thread = threading.Thread(target=model.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield model
    model.server.shutdown()
    thread.join()
    model.server.server_close()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "clean.jsonl"
    lines = []
    for number in range(20):
        turns = [("human", QUESTION(number)), ("gpt", f"{number}."), ("human", "ok"), ("gpt", "!")]
        turns = [{"from": speaker, "value": value} for speaker, value in turns]
        lines.append(json.dumps({"id": f"c{number}", "conversations": turns}) + "\n")
    path.write_text("".join(lines))
    return path


class Run:
    def __init__(self, model, source, method=Method.PARAPHRASE, share=1.0, budget=None):
        plan = Augmentation(method=method, model="m", share=share, pivot_language="German")
        self.waits = []
        self.endpoint = Endpoint(
            *(model.url, "m", source.with_name("answers.jsonl"), budget or Budget()),
            sleep=self.waits.append,
            jitter=random.Random(0),
        )
        output = source.with_name("out.jsonl")
        try:
            with output.open("wb") as file:
                self.num_added = augment_file(
                    source, file, plan, self.endpoint, lambda done, num: None
                )
        finally:
            self.endpoint.close()
        self.items = [json.loads(line) for line in output.read_text().splitlines()]


def test_variants_follow_their_conversation_with_other_questions_and_the_same_answers(
    model, source
):
    run = Run(model, source)
    assert run.num_added == 20
    originals = [json.loads(line) for line in source.read_text().splitlines()]
    assert run.items[::2] == originals
    assert run.items[7] == {
        "id": "c3-paraphrase",
        "conversations": [
            {"from": "human", "value": f"In other words: {QUESTION(3)}"},
            {"from": "gpt", "value": "3."},
            {"from": "human", "value": "ok"},
            {"from": "gpt", "value": "!"},
        ],
        "provenance": {
            "augmented_from": "c3",
            "by": "paraphrase",
            "model": "m",
            "prompt_version": 1,
        },
    }


def test_back_translation_asks_there_and_back(model, source):
    model.answer = lambda text: f"{text}."
    run = Run(model, source, Method.BACK_TRANSLATION)
    assert len(model.asked) == 40
    assert run.items[1]["conversations"][0]["value"] == f"{QUESTION(0)}.."
    assert run.items[1]["provenance"]["pivot_language"] == "German"


def test_a_share_is_the_same_conversations_every_time(model, source):
    first = Run(model, source, share=0.3)
    assert 0 < first.num_added < 20
    assert Run(model, source, share=0.3).items == first.items


def test_a_rerun_asks_nothing_again_even_after_a_torn_line(model, source):
    first = Run(model, source)
    with source.with_name("answers.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')
    again = Run(model, source)
    assert len(model.asked) == 20
    assert again.items == first.items
    assert again.endpoint.num_asked == 0


@pytest.mark.parametrize("text", ["", "x", "y" * 1000])
def test_an_answer_that_is_no_paraphrase_is_not_used(model, source, text):
    model.answer = lambda _: text
    run = Run(model, source)
    assert run.num_added == 0
    assert len(run.items) == 20


def test_asking_stops_before_the_budget_is_exceeded(model, source):
    budget = Budget(usd=0.01, usd_per_million_tokens=10.0)
    run = Run(model, source, budget=budget)
    assert run.endpoint.is_budget_used
    assert 0 < run.num_added < 20
    assert 100 * len(model.asked) * 10.0 / 1e6 <= run.endpoint.usd <= budget.usd
    again = Run(model, source, budget=budget)
    assert again.endpoint.usd <= budget.usd


def test_a_busy_endpoint_is_asked_again_when_it_says(model, source):
    model.due = [429, 503]
    run = Run(model, source)
    assert run.num_added == 20
    assert len(model.asked) == 22
    assert sorted(wait >= 7 for wait in run.waits) == [False, True]


def test_an_endpoint_that_stays_down_is_an_error_after_bounded_tries(model, source):
    model.due = [500] * 1000
    with pytest.raises(EndpointFailed, match="HTTP 500"):
        Run(model, source)
    assert 25 <= len(model.asked) <= 100


def test_a_refused_key_is_an_error_at_once(model, source, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    model.due = [401] * 100
    with pytest.raises(EndpointRefused, match="HTTP 401 no way") as error:
        Run(model, source)
    assert "sk-wrong" not in error.value.what
    assert set(model.keys) == {"Bearer sk-wrong"}
    assert len(model.asked) <= 16


@pytest.mark.parametrize("url", ["", "localhost:1/v1", "ftp://x", "http://[::1"])
def test_what_is_no_url_is_refused(source, url):
    model = type("Nowhere", (), {"url": url})
    with pytest.raises(EndpointRefused, match="no URL"):
        Run(model, source)
