"""ASGI middleware of every worker: an answer begins with its first content, not before.

Servers send "200" and an empty first chunk while a request still waits in their queue. A router
can give a request to another worker only as long as nothing was answered, so whatever waited in a
worker that dies would be lost. vLLM takes this class by its own --middleware, too.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_STREAM = b"text/event-stream"


class HeldHead:
    """Keep back the head of a stream, and what is empty of it, until content follows."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        held: list[Message] = []

        async def hold(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_stream(message):
                held.append(message)
                return
            if held and message.get("more_body") and not carries_content(message.get("body", b"")):
                held.append(message)
                return
            for one in held:
                await send(one)
            held.clear()
            await send(message)

        await self._app(scope, receive, hold)


def _is_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(_STREAM)
        for name, value in start["headers"]
    )


def carries_content(body: bytes) -> bool:
    """Tell whether an event of this part of a stream says anything, or is one we do not know."""
    return any(
        _says_something(line[len(b"data:") :].strip())
        for line in body.splitlines()
        if line.startswith(b"data:")
    )


def _says_something(event: bytes) -> bool:
    try:
        choices = json.loads(event)["choices"]
        return any(
            choice.get("finish_reason")
            or choice.get("text")
            or any(value for key, value in choice.get("delta", {}).items() if key != "role")
            for choice in choices
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # An error, [DONE], or another API's event: not ours to keep back.
        return True
