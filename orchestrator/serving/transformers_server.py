"""A worker's process: `transformers serve`, which batches, with what its API promises kept.

Its batches take the sampling of the first request for all that follow, it decodes greedily whatever
the temperature if the model's own settings do not sample, and it ignores what it does not know.
Written against transformers 5.17: `python -m orchestrator.serving.transformers_server serve NAME`.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeAlias

import uvicorn
from fastapi import HTTPException

from orchestrator.serving.held_head import App, HeldHead, Message, Receive, Send
from orchestrator.serving.sampling import NOT_QUITE_ONE, Refused, Sampling, read_request

# What transformers and torch hold; neither is imported here, so neither has types.
_Foreign: TypeAlias = Any
# transformers' default, which its command line leaves alone.
_BLOCK_TOKENS = 256
_FIRST_ERROR, _FIRST_FAULT = 400, 500
# A top_p comes back as a 32-bit number.
_ROUNDING = 1e-6
# What the request that is being answered asks for, until its tokens are queued.
_SAMPLING: ContextVar[Sampling] = ContextVar("sampling")


class _Answering:
    """Take a request apart before the server sees it, or refuse it."""

    def __init__(self, app: App, model: Path) -> None:
        self._app, self._model = app, model

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
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
        _SAMPLING.set(sampling)
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
    status = 0

    async def send_on(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start" and message["status"] >= _FIRST_ERROR:
            status = message["status"]
        elif not status:
            await send(message)
        elif not message.get("more_body"):
            await _refuse(send, status, _detail(message.get("body", b"")))

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


def _keep_to_requests(batches: _Foreign, most_tokens: int) -> None:
    """Have transformers' ContinuousBatchingManager draw tokens as each request asks, or refuse it.

    What does not fit into its cache it would keep for ever, and what exceeds the model's context is
    answered with noise.
    """
    start, add = batches.__init__, batches.add_request

    @functools.wraps(start)
    def start_apart(manager: object, **options: _Foreign) -> None:
        options["continuous_batching_config"].per_request_processors = True
        start(manager, **options)

    @functools.wraps(add)
    def add_request(manager: object, token_ids: list[int], **options: _Foreign) -> object:
        if len(token_ids) + options["max_new_tokens"] > most_tokens:
            raise HTTPException(
                400,
                f"{len(token_ids)} tokens and max_tokens {options['max_new_tokens']} together "
                f"exceed {most_tokens}.",
            )
        asked = _SAMPLING.get()
        drawn = {"temperature": asked.temperature, "top_p": asked.top_p}
        return add(manager, token_ids, **options, **drawn)

    batches.__init__, batches.add_request = start_apart, add_request


def _skip_needless_sorts(nucleus: _Foreign, float32: object) -> None:
    """Have a batch that leaves nothing out sort nothing: a CPU writes 1.5 times as much."""
    cut = nucleus.__call__

    @functools.wraps(cut)
    def cut_if_asked(self: object, scores: _Foreign, top_ps: _Foreign) -> _Foreign:
        # Elsewhere the sort is cheap, and a recorded CUDA graph cannot take turns.
        if scores.device.type == "cpu":
            asked = top_ps[: scores.size(0)].view(dtype=float32)
            if float(asked.min()) > NOT_QUITE_ONE - _ROUNDING:
                return scores
        return cut(self, scores, top_ps)

    nucleus.__call__ = cut_if_asked


def main() -> None:
    """Run `transformers` with this process's arguments."""
    # By name, for the orchestrator itself imports none of it: this is a process of its own.
    batching = importlib.import_module("transformers.generation.continuous_batching.continuous_api")
    drawing = importlib.import_module(
        "transformers.generation.continuous_batching.cb_logits_processors"
    )
    model = Path(sys.argv[2])
    _keep_to_requests(batching.ContinuousBatchingManager, _most_tokens(model, sys.argv))
    _skip_needless_sorts(
        drawing.ContinuousBatchingTopPLogitsWarper, importlib.import_module("torch").float32
    )
    config = uvicorn.Config
    uvicorn.Config = lambda app, **options: config(  # type: ignore[assignment,misc]
        HeldHead(_Answering(app, model)), **options
    )
    importlib.import_module("transformers.cli.transformers").main()


def _most_tokens(model: Path, arguments: list[str]) -> int:
    """Return what the model's context and the cache, if bounded, have room for."""
    most: int = json.loads((model / "config.json").read_bytes()).get(
        "max_position_embeddings", sys.maxsize
    )
    if "--cb-num-blocks" in arguments:
        blocks = int(arguments[arguments.index("--cb-num-blocks") + 1])
        most = min(most, blocks * _BLOCK_TOKENS)
    return most


if __name__ == "__main__":
    main()
