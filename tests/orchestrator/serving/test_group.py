"""Workers without models behind the real router: what clients get, also when workers are killed."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import openai
import psutil
import pytest

from orchestrator.errors import ModelNotServed
from orchestrator.serving.group import Group
from orchestrator.serving.models import ServedModel
from orchestrator.serving.processes import free_port
from orchestrator.serving.router import Address, Limits
from orchestrator.serving.slot import pause_before
from tests.orchestrator.serving.small_server import start

KEY = "the clients' key"
PATIENCE_S = 60


class Served:
    """An open group, looked after, with a client of its own."""

    def __init__(self, folder, names=("one",), replicas=1, start=start, **limits):
        self.said: list[str] = []
        self.group = Group(
            models=[ServedModel(name=name, folder=folder) for name in names],
            replicas=replicas,
            start=start,
            address=Address(host="127.0.0.1", port=free_port(), api_key=KEY),
            limits=Limits(**{"max_concurrent": 64, "max_queued": 64, **limits}),
            folder=folder,
            say=self.said.append,
        )
        self.group.open()
        self.url = self.group.address.url
        self.client = self.client_with(KEY)

    def client_with(self, key):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def close(self):
        self.client.close()
        self.group.close()

    def ask(self, model="one", *, first=0.0, words=1, pause=0.0):
        """Return what a worker says at once."""
        message = json.dumps({"first": first, "words": words, "pause": pause})
        answer = self.client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": message}]
        )
        return answer.choices[0].message.content

    def stream(self, *, first=0.0, words=1, pause=0.0, heard=None):
        """Return the words of a stream, and what it ended with: a reason, or an error."""
        message = json.dumps({"first": first, "words": words, "pause": pause})
        said, reason = [], None
        try:
            for chunk in self.client.chat.completions.create(
                model="one", messages=[{"role": "user", "content": message}], stream=True
            ):
                if chunk.choices[0].delta.content:
                    said.append(chunk.choices[0].delta.content.strip())
                    if heard is not None:
                        heard.release()
                reason = chunk.choices[0].finish_reason or reason
        except openai.OpenAIError as error:
            return said, error
        return said, reason

    def pids(self):
        return [worker.process.pid for worker in self.group.workers()]

    def tick_until(self, is_so):
        until = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < until, self.said
            self.group.tick()
            time.sleep(0.05)


@pytest.fixture
def serve(tmp_path):
    opened = []

    def open_one(**options):
        opened.append(Served(tmp_path, **options))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def test_two_models_are_listed_and_routed(serve):
    served = serve(names=("one", "two"))
    assert sorted(model.id for model in served.client.models.list()) == ["one", "two"]
    assert served.ask("one").startswith("one ")
    assert served.ask("two").startswith("two ")
    with pytest.raises(openai.NotFoundError, match="three"):
        served.ask("three")


def test_a_proxy_is_for_what_is_elsewhere(serve, monkeypatch):
    # In upper case too: httpx, smg and what they are made of read either.
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    served = serve()
    with httpx.Client(trust_env=False) as http:
        answer = http.post(
            f"{served.url}/v1/chat/completions",
            headers={"Authorization": f"Bearer {KEY}"},
            json={
                "model": "one",
                "messages": [
                    {"role": "user", "content": '{"first": 0, "words": 1, "pause": 0}'},
                ],
            },
            timeout=PATIENCE_S,
        )
    assert answer.raise_for_status().json()["choices"][0]["message"]["content"].startswith("one ")


def test_a_request_without_the_key_is_refused(serve):
    served = serve()
    with served.client_with("another key") as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="one", messages=[{"role": "user", "content": "{}"}])


def test_the_keys_are_in_no_list_of_processes(serve):
    served = serve()
    router = psutil.Process(served.group.router.process.pid)
    assert not any(KEY in part for part in router.cmdline())


def test_the_clients_key_registers_no_worker(serve):
    served = serve()
    answer = httpx.post(
        f"{served.url}/workers",
        json={"url": "http://127.0.0.1:1", "model_id": "one"},
        headers={"Authorization": f"Bearer {KEY}"},
    )
    assert answer.status_code in (401, 403)


def test_what_does_not_fit_the_queue_is_told_to_come_later(serve):
    served = serve(max_concurrent=1, max_queued=2)
    with ThreadPoolExecutor(6) as pool:
        # Longer than six clients take to begin on a busy machine: all of them meet the first.
        answers = [pool.submit(served.ask, first=2.0) for _ in range(6)]
    errors = [error for error in (one.exception() for one in answers) if error is not None]
    assert [type(error) for error in errors] == [openai.RateLimitError] * 3


@pytest.mark.slow
def test_a_killed_worker_loses_only_streams_that_had_begun(serve):
    served = serve(replicas=2)
    heard = threading.Semaphore(0)
    with ThreadPoolExecutor(20) as pool:
        begun = [pool.submit(served.stream, words=100, pause=0.05, heard=heard) for _ in range(8)]
        for _ in begun:
            assert heard.acquire(timeout=PATIENCE_S)
        waiting = [pool.submit(served.stream, first=1.5, words=2) for _ in range(8)]
        whole = [pool.submit(served.ask, first=1.5) for _ in range(4)]
        # Four of the eight streams, and six of the twelve that wait, are here.
        dead = served.group.workers()[0].process
        running = served.group.router.ready_workers
        until = time.monotonic() + PATIENCE_S
        while sum(running().values()) < 20:
            assert time.monotonic() < until
        dead.kill()
    cut = [one.result() for one in begun if str(dead.pid) in one.result()[0]]
    assert cut
    assert all(isinstance(end, openai.APIError) for _, end in cut)
    assert all(one.result()[1] == "stop" for one in begun if str(dead.pid) not in one.result()[0])
    for one in waiting:
        said, reason = one.result()
        assert reason == "stop"
        assert len(said) == 2
        assert str(dead.pid) not in said
    assert all(str(dead.pid) not in one.result() for one in whole)


def test_a_killed_worker_is_started_again(serve):
    served = serve()
    (before,) = served.pids()
    served.group.workers()[0].process.kill()
    served.tick_until(lambda: served.pids() not in ([], [before]) and served.group.is_ready)
    assert served.ask() == f"one {served.pids()[0]}"
    assert "ended with -9; starting it again now" in served.said[0]
    assert "is back after" in served.said[1]


@pytest.mark.slow
def test_requests_of_a_lone_worker_that_dies_wait_for_the_next(serve):
    served = serve()
    (before,) = served.pids()
    with ThreadPoolExecutor(2) as pool:
        begun = pool.submit(served.ask, first=2)
        while not sum(served.group.router.ready_workers().values()):
            assert not begun.done()
        served.group.workers()[0].process.kill()
        served.tick_until(lambda: not served.group.is_ready)
        late = pool.submit(served.ask)
        served.tick_until(lambda: served.group.is_ready)
        answers = {begun.result(), late.result()}
    assert answers == {f"one {served.pids()[0]}"}
    assert served.pids() != [before]


@pytest.mark.slow
def test_nobody_waits_for_the_first_answer_of_a_worker_that_is_back(serve):
    answers_after = iter([0.0, 0.0, 4.0])

    def start_ever_slower(model, folder, place):
        return start(model, folder, place, first_answer_s=next(answers_after))

    served = serve(replicas=2, start=start_ever_slower)
    served.group.workers()[0].process.kill()
    longest = 0.0
    until = time.monotonic() + PATIENCE_S
    while not any("is back" in line for line in served.said):
        assert time.monotonic() < until, served.said
        began = time.monotonic()
        served.group.tick()
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.05)
    assert longest < 3  # a worker that loads is asked for its health, which may take 2 s


def test_a_router_that_ends_is_started_again(serve):
    served = serve()
    served.group.router.process.kill()
    served.group.router.process.wait()
    served.group.tick()
    served.tick_until(lambda: served.group.is_ready)
    assert served.ask() == f"one {served.pids()[0]}"


def test_a_worker_that_keeps_ending_is_started_ever_more_rarely():
    assert [pause_before(times) for times in (1, 2, 3, 4, 5, 20)] == [0, 1, 2, 4, 8, 60]


def test_a_worker_that_cannot_start_ends_the_others_at_once(tmp_path):
    def start_one(model, folder, place):
        worker = start(model, folder, place)
        if model.name == "broken":
            worker.process.kill()
        return worker

    with pytest.raises(ModelNotServed, match="The server of broken ended with -9"):
        Served(tmp_path, names=("one", "broken"), start=start_one)
    assert not [
        child for child in psutil.Process().children() if "small_server" in str(child.cmdline())
    ]


@pytest.mark.slow
def test_draining_finishes_what_runs_and_leaves_no_process(serve):
    served = serve()
    pids = [*served.pids(), served.group.router.process.pid]
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(served.stream, words=160, pause=0.05)
        while not sum(served.group.router.ready_workers().values()):
            assert not begun.done()
        # The stream takes 8 s, the router listens for 5.
        assert served.group.drain(timedelta(seconds=30))
        said, reason = begun.result()
    assert (len(said), reason) == (160, "stop")
    assert not any(psutil.pid_exists(pid) for pid in pids)
