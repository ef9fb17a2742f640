"""Completion in shells: `orchestrate completion`, and what names of runs are completed to.

Only this machine's own notes are read: a shell waits for the answer.
"""

from __future__ import annotations

import sys

import click
from click.shell_completion import CompletionItem, get_completion_class

from orchestrator.cli.common import say
from orchestrator.home import known_names

_VARIABLE = "_ORCHESTRATE_COMPLETE"
_INSTALL = {
    "bash": "Add to ~/.bashrc:  eval \"$(orchestrate completion bash)\"",
    "zsh": "Add to ~/.zshrc, after compinit:  eval \"$(orchestrate completion zsh)\"",
    "fish": "Run:  orchestrate completion fish > ~/.config/fish/completions/orchestrate.fish",
}  # fmt: skip


@click.command(epilog="\b\n" + "\n".join(_INSTALL.values()))
@click.argument("shell", type=click.Choice(list(_INSTALL)))
def completion(shell: str) -> None:
    """Print the script that has SHELL complete commands, options, files and the names of runs.

    Names are those of runs that this machine has launched or looked at; nothing asks a network.
    """
    from orchestrator.cli import cli

    script = get_completion_class(shell)
    assert script is not None
    print(script(cli, {}, "orchestrate", _VARIABLE).source())
    if sys.stdout.isatty():
        say(_INSTALL[shell])


def complete_run(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the runs known here whose names begin so and are not on the line yet."""
    value = context.params.get(parameter.name or "")
    named = value if isinstance(value, tuple) else ()
    return [CompletionItem(name) for name in known_names(incomplete) if name not in named]


def complete_model(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return runs as `complete_run` does, and have the shell add files and folders."""
    # Files first: at that word bash's script forgets what came before.
    files = CompletionItem(incomplete, type="file")
    return [files, *complete_run(context, parameter, incomplete)]
