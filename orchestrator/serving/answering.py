"""Between clients and transformers' server: requests taken apart, errors put in clients' words."""

from __future__ import annotations

import json
from contextvars import ContextVar
from pathlib import Path

from orchestrator.serving.held_head import App, Message, Receive, Send
from orchestrator.serving.sampling import Refused, Sampling, read_request

# What the request that is being answered asks for, until its tokens are queued.
SAMPLING: ContextVar[Sampling] = ContextVar("sampling")
_FIRST_ERROR, _FIRST_FAULT = 400, 500


class Answering:
    """Take a request apart before the server sees it, or refuse it."""

    def __init__(self, app: App, model: Path) -> None:
        self._app, self._model = app, model

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"] == "/v1/models":
            # Its own list is of what was ever downloaded.
            model = {"id": self._model.name, "object": "model", "created": 0, "owned_by": "me"}
            await _answer(send, 200, {"object": "list", "data": [model]})
            return
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            body, sampling = read_request(await _read(receive), self._model)
        except Refused as refused:
            await _refuse(send, 400, str(refused))
            return
        SAMPLING.set(sampling)
        scope["headers"] = [
            *(one for one in scope["headers"] if one[0].lower() != b"content-length"),
            (b"content-length", str(len(body)).encode()),
        ]
        given = iter(({"type": "http.request", "body": body, "more_body": False},))

        async def give() -> Message:
            return next(given, None) or await receive()

        await self._app(scope, give, _in_clients_words(send))


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _in_clients_words(send: Send) -> Send:
    """Return what sends an error as OpenAI's clients read it; FastAPI says {"detail": ...}."""
    status, said = 0, b""

    async def send_on(message: Message) -> None:
        nonlocal status, said
        if message["type"] == "http.response.start" and message["status"] >= _FIRST_ERROR:
            status = message["status"]
        elif not status:
            await send(message)
        else:
            said += message.get("body", b"")
            if not message.get("more_body"):
                await _refuse(send, status, _detail(said))

    return send_on


def _detail(body: bytes) -> str:
    try:
        said = json.loads(body)
        return str(said.get("detail") or said.get("error") or said)
    except (ValueError, AttributeError):
        return body.decode(errors="replace")


async def _refuse(send: Send, status: int, why: str) -> None:
    kind = "invalid_request_error" if status < _FIRST_FAULT else "server_error"
    error = {"message": why, "type": kind, "param": None, "code": None}
    await _answer(send, status, {"error": error})


async def _answer(send: Send, status: int, document: object) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(document).encode()})
