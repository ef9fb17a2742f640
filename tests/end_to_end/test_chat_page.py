"""The chat page in a real browser: what is asked and answered, and what it never does."""

from __future__ import annotations

import subprocess
import sys
from urllib.request import Request, urlopen

import pytest

from tests.browser import watch
from tests.chat_page import PATIENCE_MS, chat_page, open_page, say, wait_for
from tests.openai_service import BROKEN, ENDLESS, LONG, openai_service

pytestmark = pytest.mark.slow

KEY = "k-of-the-chat-page"


@pytest.fixture(scope="module")
def service():
    with openai_service(models=["one", "two"], key=KEY) as service:
        yield service


@pytest.fixture(scope="module")
def page_url(service):
    with chat_page(service.url, ORCHESTRATE_SERVE_API_KEY=KEY) as address:
        yield address


def test_a_question_is_answered_and_the_conversation_goes_on(browser, service, page_url):
    service.requests.clear()
    with watch(browser) as page:
        open_page(page, page_url)
        say(page, "hello")
        wait_for(page, "You said: hello")
        say(page, "again")
        wait_for(page, "You said: again")
        assert KEY not in page.content()
    asked = service.requests[-1]
    assert [(one["role"], one["content"].strip()) for one in asked["messages"]] == [
        ("user", "hello"),
        ("assistant", "You said: hello"),
        ("user", "again"),
    ]
    assert sorted(asked) == ["messages", "model", "stream"]


def test_what_is_left_empty_is_left_to_the_server(browser, service, page_url):
    with watch(browser) as page:
        open_page(page, page_url)
        # Gradio reads fields that were seen otherwise than those that were not.
        page.get_by_text("Model, system prompt, sampling").click()
        page.get_by_label("Temperature").fill("warm")
        say(page, "first")
        wait_for(page, "could not convert string to float: 'warm'")
        page.get_by_label("Temperature").fill("")
        say(page, "second")
        wait_for(page, "You said: second")
    assert sorted(service.requests[-1]) == ["messages", "model", "stream"]


def test_model_system_prompt_and_sampling_can_be_chosen(browser, service, page_url):
    with watch(browser) as page:
        open_page(page, page_url)
        page.get_by_text("Model, system prompt, sampling").click()
        page.get_by_label("Model", exact=True).click()
        page.get_by_role("option", name="two").click()
        page.get_by_label("System prompt").fill("Be brief.")
        page.get_by_label("Longest answer").fill("64")
        page.get_by_label("Temperature").fill("0")
        say(page, "first")
        wait_for(page, "You said: first")
        say(page, "second")
        wait_for(page, "You said: second")
    asked = service.requests[-1]
    assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("two", 64, 0)
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert len(asked["messages"]) == 4


def test_stopping_ends_the_answer_at_the_server(browser, service, page_url):
    service.was_left.clear()
    with watch(browser) as page:
        open_page(page, page_url)
        say(page, ENDLESS)
        wait_for(page, "on on on")
        page.locator("button.stop-button").click()
        assert service.was_left.wait(PATIENCE_MS / 1000)


def test_what_goes_wrong_is_shown_and_not_remembered(browser, service, page_url):
    with watch(browser) as page:
        open_page(page, page_url)
        say(page, LONG)
        wait_for(page, "reached the longest length")
        say(page, BROKEN)
        wait_for(page, "refused (out of memory)")
        say(page, "after that")
        wait_for(page, "You said: after that")
    asked = [one["content"].strip() for one in service.requests[-1]["messages"]]
    assert asked == [LONG, f"You said: {LONG}", "after that"]


def test_an_answer_runs_nothing_and_loads_nothing(browser):
    hostile = (
        "![x](http://evil.example/x.png) <script>alert(1)</script> "
        "<img src=x onerror=alert(2)> <iframe src=http://evil.example></iframe> the end"
    )
    blocked = [r"evil\.example", r"127\.0\.0\.1:\d+/x\b", r"status of 404"]
    with (
        openai_service(odd_answer=hostile) as service,
        chat_page(service.url) as address,
        watch(browser, expected=blocked) as page,
    ):
        arrived = []
        page.on("response", lambda response: arrived.append(response.url))
        open_page(page, address)
        say(page, "q")
        wait_for(page, "the end")
        page.get_by_label("Copy message").last.wait_for(timeout=PATIENCE_MS)
        assert not [url for url in arrived if "evil.example" in url]


def test_the_page_answers_to_no_other_name(page_url):
    with pytest.raises(OSError, match="400"):
        urlopen(Request(page_url, headers={"Host": "evil.example"}), timeout=10)


def test_a_server_that_is_not_there_ends_the_page_with_two_lines():
    with openai_service() as gone:
        url = gone.url
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.chat.page", url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr
    assert len(done.stderr.splitlines()) == 2
