"""The command line. Commands load only when they are called: `--help` must stay fast."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


# Command -> (module, one-line help); the modules cost up to 0.5 s of imports each.
_COMMANDS = {
    "launch": ("orchestrator.cli.launch", "Train what a spec describes, or pick it up again."),
    "plan": ("orchestrator.cli.launch", "Show what a launch would do and cost."),
    "simulate": ("orchestrator.cli.simulate", "Replay recorded markets under each policy."),
    "resume": ("orchestrator.cli.launch", "Go on with a run from its run folder."),
    "status": ("orchestrator.cli.reports", "Show how a run, or every run, is doing."),
    "cost": ("orchestrator.cli.reports", "Show what a run cost and where its time went."),
    "logs": ("orchestrator.cli.reports", "Print the log, attempt by attempt and node by node."),
    "dashboard": (
        "orchestrator.cli.dashboard",
        "Serve pages of runs, or write one: cost, attempts, loss.",
    ),
    "eval": ("orchestrator.cli.evaluate", "Have a judge score a model, and compare two."),
    "stop": ("orchestrator.cli.control", "Have a run save and stop; it can be resumed."),
    "delete": ("orchestrator.cli.control", "Delete a run with its checkpoints, for good."),
    "data": ("orchestrator.cli.data", "Prepare conversations for training."),
    "serve": ("orchestrator.cli.serve", "Serve models behind one OpenAI-compatible address."),
    "chat": ("orchestrator.cli.chat", "Talk to a served model."),
    "doctor": ("orchestrator.cli.doctor", "Check what a launch needs, before it."),
    "checkpoints": (
        "orchestrator.cli.checkpoints",
        "List, verify, prune, pin and export checkpoints; apply a delta.",
    ),
    "completion": ("orchestrator.cli.completion", "Print what makes a shell complete commands."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name][0])
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            # 4 ms that only a mistyped command pays.
            import difflib

            close = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # click's own would load every command to ask it for its help.
        from click.shell_completion import CompletionItem

        commands = [
            CompletionItem(name, help=summary)
            for name, (_, summary) in _COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return commands + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


def _print_version(context: click.Context, parameter: click.Parameter, is_asked: bool) -> None:
    if is_asked and not context.resilient_parsing:
        # 30 ms, mostly importlib.metadata.
        from orchestrator.cli.version import describe

        click.echo(describe())
        context.exit()


_EPILOG = """\b
Start here, on this machine, with a simulated market:
  orchestrate launch examples/quickstart.yaml
Then, on clouds:
  orchestrate plan run.yaml; orchestrate doctor run.yaml; orchestrate launch run.yaml

Exit status: 0 done, 2 usage or spec, 3 a cloud refused, 4 gave up (resumable), 5 training failed,
130 interrupted while the run goes on."""


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and what is installed, and exit.",
)
def cli() -> None:
    """Train on preemptible GPU nodes: exact resume that is proved, one honest bill."""


def main() -> None:
    """Run the command line; every foreseen error is two lines on stderr and its exit code."""
    try:
        _refuse_bytes(sys.argv[1:])
        # Without standalone mode click returns what a command gave to Context.exit.
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.exceptions.Abort:
        click.echo("Nothing was done.", err=True)
        click.echo("Answer y to go on, or add --yes.", err=True)
        sys.exit(2)
    except click.ClickException as error:
        click.echo(error.format_message(), err=True)
        context = getattr(error, "ctx", None)
        click.echo(f"See: {context.command_path if context else 'orchestrate'} --help", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output (head, less) is gone; say nothing at interpreter exit either.
        sys.stdout = None
        sys.exit(0)
    except Exception as error:  # noqa: BLE001  # the outer edge: translated, or re-raised
        sys.exit(_exit_code(error))


def _refuse_bytes(arguments: list[str]) -> None:
    """Raise click.UsageError for an argument that is no text: no record and no page can hold it."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise click.UsageError(f"The argument {argument!r:.80} is no UTF-8 text.") from error


def _exit_code(error: Exception) -> int:
    from orchestrator.cli.common import say
    from orchestrator.cli.failures import explain

    explained = explain(error)
    if explained is None:
        raise error
    for text in (explained.what, explained.next_step):
        say(" ".join(text.splitlines()))  # two lines, whatever was said to us
    return explained.exit_code
