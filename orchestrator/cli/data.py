"""`orchestrate data`: conversations before they are trained on."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import (
    MOST_TOKENS,
    MOST_USD,
    Amount,
    examples,
    json_option,
    plain,
    print_json,
    say,
)

if TYPE_CHECKING:
    from orchestrator.cleaning import CleaningReport
    from orchestrator.showing import ShownConversation

# Conversations that are shown to people who name none.
_SHOWN = 3
_MOST_WORKERS = 256

# Option of the command -> option of `train.data.clean`, where a value is passed on as it is.
_PASSED_ON = {
    "workers": "--workers",
    "language": "--language",
    "max_length": "--max-length",
    "template": "--template",
    "augment": "--augment",
    "endpoint": "--endpoint",
    "model": "--model",
    "share": "--share",
    "pivot_language": "--pivot-language",
    "budget_usd": "--budget-usd",
    "usd_per_million_tokens": "--usd-per-million-tokens",
}


def _tokenizer_option(help_text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    kind = click.Path(path_type=Path, exists=True, file_okay=False)
    return click.option("--tokenizer", type=kind, metavar="DIR", help=help_text)


def _template_option(**more: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:  # noqa: ANN401
    kind = click.Choice(["vicuna", "model"])
    return click.option("--template", type=kind, help="As data.template of a spec.", **more)


@click.group(
    epilog=examples(
        "orchestrate data prepare sharegpt.json clean.jsonl --language en",
        "orchestrate data show clean.jsonl",
    )
)
def data() -> None:
    """Prepare conversations for training."""


@data.command(
    short_help="Clean shared conversations for training.",
    epilog=examples("orchestrate data prepare sharegpt.json clean.jsonl --language en"),
)
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--workers", type=click.IntRange(1, _MOST_WORKERS), metavar="N", help="Default: all cores."
)
@click.option(
    "--block-phrase",
    multiple=True,
    metavar="TEXT",
    help="Drop conversations with it in an answer; may be repeated. Default: openai, chatgpt.",
)
@click.option("--keep-html", is_flag=True, help="Answers are Markdown already: convert none.")
@click.option("--language", metavar="CODE", help="Keep this language only, as in: en.")
@click.option(
    "--max-length",
    type=click.IntRange(1, MOST_TOKENS),
    metavar="N",
    help="Split conversations that are longer than N tokens; needs --tokenizer.",
)
@_tokenizer_option("Model folder whose tokenizer counts.")
@_template_option()
@click.option(
    "--augment",
    type=click.Choice(["paraphrase", "back-translation"]),
    help="Add conversations whose questions a model has put in other words.",
)
@click.option("--endpoint", metavar="URL", help="OpenAI-compatible; the key is OPENAI_API_KEY.")
@click.option("--model", metavar="NAME", help="The endpoint's model.")
@click.option(
    "--share",
    type=Amount(1, is_above=True),
    metavar="X",
    help="Share of conversations that are augmented (0.1).",
)
@click.option("--pivot-language", metavar="NAME", help="Of back-translation (German).")
@click.option(
    "--budget-usd", type=Amount(MOST_USD, is_above=True), metavar="X", help="Ask for no more."
)
@click.option(
    "--usd-per-million-tokens", type=Amount(MOST_USD), metavar="Y", help="What a budget needs."
)
@click.option("--force", is_flag=True, help="Replace another OUT.")
@json_option
def prepare(
    source: Path,
    output: Path,
    block_phrase: tuple[str, ...],
    tokenizer: Path | None,
    *,
    keep_html: bool,
    force: bool,
    as_json: bool,
    **passed_on: Any,  # noqa: ANN401  # as click parsed them
) -> None:
    """Clean the ShareGPT conversations in IN (JSON or JSON lines) and write OUT (JSON lines).

    OUT.report.json says what was dropped or changed, and why. The same command again goes on
    where it was interrupted.
    """
    # 60 ms of pydantic, which --help does not pay.
    from orchestrator.cleaning import clean

    _check(passed_on, tokenizer)
    options = [
        f"{_PASSED_ON[key]}={value}" for key, value in passed_on.items() if value is not None
    ]
    options += [f"--block-phrase={phrase}" for phrase in block_phrase]
    options += ["--keep-html"] * keep_html + ["--force"] * force
    if tokenizer is not None:
        options.append(f"--tokenizer={tokenizer.resolve()}")
    if passed_on["workers"] is None:
        options.append(f"--workers={os.cpu_count() or 1}")
    report = clean(source, output, options)
    if as_json:
        print_json(report.model_dump())
        return
    _print_table(report)
    say(f"Wrote {report.output}; every change is in {report.report}.")
    say("Next: name it as data.train in a spec, then orchestrate plan SPEC.")


@data.command(
    short_help="Print conversations with what will be trained on.",
    epilog=examples("orchestrate data show examples/conversations.json"),
)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--id", "id_", metavar="ID", help="Only this conversation.")
@_tokenizer_option("Model folder with the tokenizer; without, one is trained on FILE.")
@_template_option(default="vicuna", show_default=True)
@json_option
def show(
    file: Path, id_: str | None, tokenizer: Path | None, template: str, *, as_json: bool
) -> None:
    """Print what will be trained on: whole conversations, trained tokens highlighted."""
    # 60 ms of pydantic, which --help does not pay.
    from orchestrator import showing

    shown = showing.show(file, id_, tokenizer, template)
    if as_json:
        print_json({"schema_version": 1, "conversations": [one.model_dump() for one in shown]})
        return
    with closing(shown):
        for number, conversation in enumerate(shown):
            if number == _SHOWN:
                say(f"These are the first {_SHOWN}; --id ID shows another one, --json all.")
                break
            _print_conversation(conversation)


def _print_conversation(conversation: ShownConversation) -> None:
    from rich.console import Console  # 60 ms
    from rich.text import Text

    num_trained = sum(conversation.trained)
    console = Console(highlight=False, soft_wrap=True)
    head = f"{conversation.id}: {len(conversation.pieces)} tokens, {num_trained} trained"
    console.rule(Text(plain(head)))
    text = Text()
    for number, (piece, is_trained) in enumerate(
        zip(conversation.pieces, conversation.trained, strict=True)
    ):
        # Neighbouring tokens differ a little, so that their bounds are seen.
        style = (
            ("black on green" if number % 2 else "black on bright_green") if is_trained else "dim"
        )
        text.append(plain(piece), style=style)
    if not console.is_terminal:
        text = Text(_marked(conversation))
    console.print(text)


def _marked(conversation: ShownConversation) -> str:
    """Return the text with trained stretches between [[ and ]], where there are no colours."""
    parts = []
    before = 0
    for piece, is_trained in zip(conversation.pieces, conversation.trained, strict=True):
        parts += ["[["] * (is_trained > before) + ["]]"] * (is_trained < before) + [piece]
        before = is_trained
    return "".join([*parts, "]]" * before])


def _check(passed_on: dict[str, Any], tokenizer: Path | None) -> None:
    if (passed_on["max_length"] is None) != (tokenizer is None):
        raise click.UsageError("--max-length and --tokenizer go together.")
    if passed_on["template"] is not None and tokenizer is None:
        raise click.UsageError("--template goes with --max-length and --tokenizer.")
    names = ("endpoint", "model")
    if passed_on["augment"] is not None and any(passed_on[name] is None for name in names):
        raise click.UsageError("--augment needs --endpoint and --model.")
    extra = (*names, "share", "pivot_language", "budget_usd", "usd_per_million_tokens")
    for name in extra:
        if passed_on["augment"] is None and passed_on[name] is not None:
            raise click.UsageError(f"{_PASSED_ON[name]} goes with --augment.")
    if passed_on["budget_usd"] is not None and passed_on["usd_per_million_tokens"] is None:
        raise click.UsageError("--budget-usd needs --usd-per-million-tokens.")


def _print_table(report: CleaningReport) -> None:
    from rich.console import Console  # 60 ms
    from rich.table import Table

    table = Table("conversations", "", box=None)
    rows = {
        "read": report.num_read,
        "dropped": report.num_dropped,
        "changed": report.num_changed,
        "written": report.num_written,
        **{f"  {reason}": count for reason, count in report.reasons.items()},
        **{f"augmented: {name}": n for name, n in (report.augmentation or {}).items()},
    }
    for name, count in rows.items():
        table.add_row(name, str(count))
    Console().print(table)
