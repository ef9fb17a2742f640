"""`orchestrate chat`: talk to a served model in a terminal, or ask one question through a pipe."""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import closing, suppress

import click

from orchestrator.chat.address import find_key, is_exposed
from orchestrator.chat.conversation import Conversation, Leave
from orchestrator.chat.server import Answer, End, Sampling, Server
from orchestrator.cli.common import MOST_TOKENS, Amount, examples, plain, say
from orchestrator.errors import OrchestratorError, ServerUnusable, UsageError
from orchestrator.openai_api import resolve_url

_PROMPT = "> "
# Pasted lines are there at once; nobody types the next line in so short a time.
_PASTE_S = 0.02


@click.command(
    epilog=examples(
        "orchestrate chat http://127.0.0.1:8000/v1",
        'echo "Name the capital of France." | orchestrate chat http://127.0.0.1:8000/v1',
    )
)
@click.argument("url")
@click.option("--model", metavar="NAME", help="Model to ask, if the server has several.")
@click.option("--system", metavar="TEXT", help="System prompt; without it the model's own.")
@click.option(
    "--max-tokens", type=click.IntRange(1, MOST_TOKENS), metavar="N", help="Longest answer."
)
@click.option("--temperature", type=Amount(100), metavar="X", help="0 always takes the likeliest.")
@click.pass_context
def chat(
    context: click.Context,
    url: str,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
) -> None:
    """Talk to the model that a server of the OpenAI API at URL has.

    In a terminal answers appear as they are made; /help lists what can be said besides questions.
    What comes through a pipe is one question, and only its answer goes to stdout.

    The server's key comes from ORCHESTRATE_SERVE_API_KEY; OPENAI_API_KEY is sent to
    api.openai.com alone. A server here: orchestrate serve --local MODEL
    """
    address = resolve_url(url)
    if find_key(address, os.environ) is not None and is_exposed(address):
        say("The key and all that is said are sent unencrypted: better https, or a tunnel.")
    for stream in (sys.stdout, sys.stderr):
        # A terminal may lack what a model can say, and half of a character has no encoding.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    is_terminal = sys.stdin.isatty()
    question = "" if is_terminal else _read_question()
    with closing(Server(address, os.environ)) as server:
        names = [model] if model is not None else server.models()
        conversation = Conversation(
            server=server,
            model=names[0] if len(names) == 1 else _choose(names, is_terminal=is_terminal),
            system=system,
            sampling=Sampling(max_tokens=max_tokens, temperature=temperature),
        )
        if is_terminal:
            _talk(conversation)
        else:
            context.exit(_answer_once(conversation, question))


def _read_question() -> str:
    question = sys.stdin.read().strip()
    if not question:
        raise UsageError("There is no question on stdin.", 'echo "question" | orchestrate chat URL')
    return question


def _choose(names: list[str], *, is_terminal: bool) -> str:
    if not is_terminal:
        raise UsageError(
            f"The server has several models: {plain(', '.join(names))}.", "Add --model NAME."
        )
    for place, name in enumerate(names, 1):
        say(f"{place}  {plain(name)}")
    number: int = click.prompt("Which one?", type=click.IntRange(1, len(names)), err=True)
    return names[number - 1]


def _answer_once(conversation: Conversation, question: str) -> int:
    """Print the answer and return the exit code; raise ServerUnusable for one that is cut."""
    answer = conversation.ask(question, _show)
    print(flush=True)
    if answer.end is End.CUT:
        raise ServerUnusable(f"The answer is cut off: {plain(answer.why)}", "Ask again.")
    _say_how_it_ended(answer)
    return 130 if answer.end is End.STOPPED else 0


def _talk(conversation: Conversation) -> None:
    """Ask and answer until the user leaves."""
    with suppress(ImportError):
        import readline  # edits and remembers lines, where this Python has it

        readline.parse_and_bind("set enable-bracketed-paste on")
    say(f"{plain(conversation.model)} at {conversation.server.url}; /help lists commands.")
    was_interrupted = False
    while True:
        try:
            question = _read_lines()
            was_interrupted = False
            if question:
                was_interrupted = _take_turn(conversation, question)
        except KeyboardInterrupt:
            say("")
            if was_interrupted:
                return
            was_interrupted = True
            say("Ctrl-C again leaves.")
        except (EOFError, Leave):
            say("")
            return
        except OrchestratorError as error:
            say(plain(f"{error.what}\n{error.next_step}"))


def _read_lines() -> str:
    """Return what was typed; lines that were pasted together are one question."""
    lines = [_read_line(_PROMPT)]
    with suppress(EOFError):  # what was typed before it counts
        while select.select([sys.stdin], [], [], _PASTE_S)[0]:
            lines.append(_read_line(""))
    return "\n".join(lines).strip()


def _read_line(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    # Answers go to a file: what people see meanwhile must not.
    click.echo(prompt, err=True, nl=False)
    return input()


def _take_turn(conversation: Conversation, question: str) -> bool:
    """Obey or answer; return whether the user stopped the answer."""
    said = conversation.obey(question)
    if said is not None:
        say(plain(said))
        return False
    answer = conversation.ask(question, _show)
    print(flush=True)
    _say_how_it_ended(answer)
    return answer.end is End.STOPPED


def _show(piece: str) -> None:
    # A carriage return would move the cursor, and before a line feed it says nothing.
    print(plain(piece.replace("\r", "")), end="", flush=True)


def _say_how_it_ended(answer: Answer) -> None:
    if answer.end is End.CUT:
        say(f"The answer is cut off: {plain(answer.why)}")
        say("It is not remembered: ask again.")
    elif answer.end is End.LENGTH:
        say("The answer reached the longest length; --max-tokens N allows more.")
    elif not answer.text:
        say("The model said nothing.")
    if sys.stderr.isatty() and answer.first_s is not None:
        speed = answer.tokens_per_s
        parts = [f"first token after {answer.first_s:.2f} s"]
        parts += [] if speed is None else [f"{speed:.1f} tokens/s"]
        dim = "NO_COLOR" not in os.environ
        click.secho(f"[{', '.join(parts)}]", err=True, dim=dim or None)
