"""Gradio's chat page before a server of the OpenAI API, for browsers on this machine.

Run: python -m orchestrator.chat.page URL --port PORT

The key stays in this process. The page loads nothing from elsewhere, whatever an answer asks for.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from orchestrator.chat.server import End, Sampling, Server
from orchestrator.errors import MissingDependency, OrchestratorError, UsageError
from orchestrator.openai_api import resolve_url

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response
    from gradio import Blocks
    from openai.types.chat import ChatCompletionMessageParam

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
# Gradio's own scripts are inline and compile templates; nothing may come from, or go, elsewhere: an
# answer with a picture's address would otherwise tell others what was said.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self' data: blob:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_SYSTEM_FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
_MONO_FONTS = ("ui-monospace", "monospace")
_OPTIONS = "Model, system prompt, sampling"
_OPEN = "the server's own"


@click.command()
@click.argument("url")
@click.option("--port", type=click.IntRange(0, 65535), default=0)
def main(url: str, port: int) -> None:
    """Serve the page until a signal comes; its address goes to stdout once it listens."""
    try:
        with closing(Server(resolve_url(url), os.environ)) as server:
            _serve(make_app(server, server.models()), port)
    except OrchestratorError as error:
        click.echo(f"{error.what}\n{error.next_step}", err=True)
        sys.exit(error.exit_code)


def make_app(server: Server, models: Sequence[str]) -> FastAPI:
    """Return the page as an application; raise MissingDependency."""
    # Read when gradio is imported; otherwise it tells its makers of every start.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio  # an extra, and 1.8 s
        from fastapi import FastAPI
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError as error:
        raise MissingDependency(
            f"The chat page needs {error.name}, which is not installed.",
            "pip install 'spot-orchestrator[eval,ui]'",
        ) from error
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(_with_headers)
    # Under no other name: a page elsewhere could otherwise have its own name lead here.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(_NAMES))
    theme = gradio.themes.Default(font=_SYSTEM_FONTS, font_mono=_MONO_FONTS)
    mounted: FastAPI = gradio.mount_gradio_app(
        app,
        _make_page(server, models),
        "/",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        theme=theme,
    )
    return mounted


def _make_page(server: Server, models: Sequence[str]) -> Blocks:
    import gradio

    return gradio.ChatInterface(
        partial(_reply, server),
        # Without the button that publishes a conversation on the Hugging Face hub.
        chatbot=gradio.Chatbot(show_label=False, scale=1, buttons=["copy", "copy_all"]),
        title=f"Chat with {', '.join(models)}",
        additional_inputs=[
            gradio.Dropdown(list(models), value=models[0], label="Model"),
            gradio.Textbox(label="System prompt", placeholder="the model's own", lines=2),
            # No gradio.Number: it shows 0 for nothing, and 0 is a temperature.
            gradio.Textbox(label="Longest answer, in tokens", placeholder=_OPEN),
            gradio.Textbox(label="Temperature", placeholder=_OPEN),
        ],
        additional_inputs_accordion=gradio.Accordion(_OPTIONS, open=False),
        # As many at once as the server takes, which has a queue of its own.
        concurrency_limit=None,
        api_visibility="private",
        analytics_enabled=False,
    )


def _reply(
    server: Server,
    question: str,
    history: Sequence[Mapping[str, Any]],
    model: str,
    system: str | None,
    max_tokens: str | None,
    temperature: str | None,
) -> Iterator[str]:
    """Yield the answer as far as it is; closing it, as the stop button does, ends the request."""
    import gradio

    said, end, why = "", End.CUT, "the server did not say that it was over."
    try:
        sampling = Sampling(
            max_tokens=int(max_tokens) if max_tokens else None,
            temperature=float(temperature) if temperature else None,
        )
        for piece in server.pieces(model, _messages(system, history, question), sampling):
            said, end = said + piece.text, piece.end or end
            yield said
    except (OrchestratorError, ValueError) as error:
        # Said, not raised: gradio leaves its field for questions locked after an error.
        end, why = End.CUT, str(error)
    if end is End.CUT:
        gradio.Warning(why, title="The answer is cut off" if said else "No answer")
    elif end is End.LENGTH:
        gradio.Info("The answer reached the longest length.")


def _messages(
    system: str | None, history: Sequence[Mapping[str, Any]], question: str
) -> list[ChatCompletionMessageParam]:
    """Return what was said as the API takes it: gradio's turns are lists of parts.

    Questions that got no answer are left out. `system` is None until its field has been seen.
    """
    messages: list[Any] = [{"role": "system", "content": system}] if system else []
    asked = {"role": "user", "content": [{"text": question}]}
    for turn, following in pairwise([*history, asked]):
        if turn["role"] != following["role"]:
            messages.append({"role": turn["role"], "content": _text(turn)})
    return [*messages, {"role": "user", "content": question}]


def _text(turn: Mapping[str, Any]) -> str:
    return "".join(part.get("text", "") for part in turn["content"])


async def _with_headers(
    request: Request, answer: Callable[[Request], Awaitable[Response]]
) -> Response:
    response = await answer(request)
    response.headers.update(_HEADERS)
    return response


def _serve(app: FastAPI, port: int) -> None:
    import uvicorn  # comes with gradio

    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise UsageError(
            f"Cannot listen at {HOST}:{port}: {error.strerror}.", "Choose another port; 0: any."
        ) from error
    click.echo(f"http://{HOST}:{listening.getsockname()[1]}/")
    # An open page holds a connection; it must not keep this process.
    config = uvicorn.Config(
        app, log_level="critical", server_header=False, timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
