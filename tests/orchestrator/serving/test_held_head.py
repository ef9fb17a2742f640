"""What of a stream is kept back, and until when."""

from __future__ import annotations

import asyncio
import json

import pytest

from orchestrator.serving.held_head import HeldHead, carries_content

STREAM = (b"content-type", b"text/event-stream; charset=utf-8")


def event(**choice):
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


ROLE = event(index=0, delta={"role": "assistant", "content": ""}, finish_reason=None)
WORD = event(index=0, delta={"content": "Paris"}, finish_reason=None)


def sent_after_each(*bodies, headers=(STREAM,)):
    """Return how many messages have gone out after the head and after each body."""
    out, seen = [], []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        seen.append(len(out))
        for body in bodies:
            more = body is not bodies[-1]
            await send({"type": "http.response.body", "body": body, "more_body": more})
            seen.append(len(out))

    async def send(message):
        out.append(message)

    asyncio.run(HeldHead(app)({"type": "http", "method": "POST"}, None, send))
    return seen


def test_head_and_empty_chunks_wait_for_the_first_word():
    assert sent_after_each(ROLE, WORD, WORD, b"") == [0, 0, 3, 4, 5]


def test_an_answer_without_a_word_is_sent_at_its_end():
    assert sent_after_each(ROLE, b"") == [0, 0, 3]


def test_what_is_no_stream_is_passed_on_at_once():
    assert sent_after_each(b"{}", headers=[(b"content-type", b"application/json")]) == [1, 2]


@pytest.mark.parametrize(
    "body",
    [
        event(delta={"tool_calls": [{"index": 0}]}),
        event(delta={}, finish_reason="stop"),
        event(text="Paris"),
        b'data: {"error": "out of memory"}\n\n',
        b"data: [DONE]\n\n",
        b'event: response.created\ndata: {"type": "response.created"}\n\n',
    ],
)
def test_words_ends_errors_and_what_is_not_known_go_out(body):
    assert carries_content(body)


@pytest.mark.parametrize("body", [ROLE, b": keep-alive\n\n", b""])
def test_what_says_nothing_does_not(body):
    assert not carries_content(body)
