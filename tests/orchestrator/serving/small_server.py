"""A worker without a model: it speaks the API, says its process's number, and is slow when asked.

The last message is what it does: {"first": seconds to the first word, "words": number,
"pause": seconds between words}.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from orchestrator.serving.engines import Place
from orchestrator.serving.held_head import HeldHead
from orchestrator.serving.models import ServedModel
from orchestrator.serving.processes import free_port, start_process
from orchestrator.serving.worker import Worker


def start(model: ServedModel, folder: Path, place: Place, first_answer_s: float = 0.0) -> Worker:
    """Start one, as `orchestrator.serving.worker.start_worker` does."""
    port = free_port()
    log = folder / f"{port}.log"
    command = [sys.executable, "-m", __name__, model.name, str(port), str(first_answer_s)]
    root = str(Path(__file__).parents[3])
    environment = {"PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
    process = start_process(command, folder=folder, log=log, environment=environment)
    return Worker(model=model, process=process, url=f"http://127.0.0.1:{port}", log=log)


def make_app(name: str, first_answer_s: float) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0}]}

    @app.post("/v1/completions")
    async def complete(body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(first_answer_s)
        return {"choices": [{"text": "1"}]}

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: dict[str, Any]) -> StreamingResponse | dict[str, Any]:
        asked = json.loads(body["messages"][-1]["content"])
        if body.get("stream"):
            return StreamingResponse(_stream(name, asked), media_type="text/event-stream")
        await asyncio.sleep(asked["first"] + asked["words"] * asked["pause"])
        message = {"role": "assistant", "content": f"{name} {os.getpid()}"}
        return {
            **_head(name, "chat.completion"),
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }

    return app


async def _stream(name: str, asked: dict[str, Any]) -> AsyncIterator[str]:
    yield _chunk(name, {"role": "assistant"})
    await asyncio.sleep(asked["first"])
    for _ in range(asked["words"]):
        yield _chunk(name, {"content": f"{os.getpid()} "})
        await asyncio.sleep(asked["pause"])
    yield _chunk(name, {}, "stop")


def _chunk(name: str, delta: dict[str, str], finish_reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return f"data: {json.dumps({**_head(name, 'chat.completion.chunk'), 'choices': [choice]})}\n\n"


def _head(name: str, kind: str) -> dict[str, Any]:
    return {"id": "1", "object": kind, "created": 0, "model": name}


if __name__ == "__main__":
    app = make_app(sys.argv[1], float(sys.argv[3]))
    uvicorn.run(HeldHead(app), port=int(sys.argv[2]), log_level="warning")
