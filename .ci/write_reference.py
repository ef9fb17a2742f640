"""Write docs/reference.md from the command line and the spec, and the list of decisions from their
titles; a test compares them.

Run: python .ci/write_reference.py
"""

from __future__ import annotations

import enum
import typing
from collections.abc import Iterator
from pathlib import Path

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from orchestrator.cli import cli
from orchestrator.spec import RunSpec

DOCS = Path(__file__).parents[1] / "docs"
EXIT_CODES = """
| code | meaning |
|---|---|
| 0 | done |
| 1 | a bug of ours, or `checkpoints verify` found a difference |
| 2 | usage, spec or data |
| 3 | the cloud or its store refused or cannot be reached |
| 4 | gave up or was stopped; resumable (time, retries or budget) |
| 5 | training failed |
| 130 | interrupted: the run goes on |
"""


def render() -> str:
    """Return the page."""
    parts = [
        "# Reference",
        "Written by `python .ci/write_reference.py`; do not edit.",
        "## Command line",
        *_commands(cli, "orchestrate"),
        "## Exit codes",
        EXIT_CODES.strip(),
        "## Spec",
        "Unknown keys are refused. `--set key.path=value` overrides any key.",
        *_sections(RunSpec, ""),
    ]
    return "\n\n".join(parts) + "\n"


def render_decisions() -> str:
    """Return the page that lists the decisions."""
    titles = (
        (path.name, path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# "))
        for path in sorted((DOCS / "decisions").glob("[0-9]*.md"))
    )
    return "\n".join(
        [
            "# Decisions",
            "What was chosen and what was given up. Pages are not edited later, only superseded.",
            "Written by `python .ci/write_reference.py`; do not edit.",
            "",
            *(f"- [{title}]({name})" for name, title in titles),
            "",
        ]
    )


def _commands(command: click.Command, name: str) -> Iterator[str]:
    context = click.Context(
        command,
        info_name=name,
        max_content_width=96,
        terminal_width=96,
        # As the program itself has it; click keeps the first help option that it made.
        help_option_names=["-h", "--help"],
    )
    yield f"### `{name}`\n```\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from _commands(found, f"{name} {inner}")


def _sections(model: type[BaseModel], path: str) -> Iterator[str]:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        key = f"{path}{name}"
        inner = _section_of(field.annotation)
        if inner is not None:
            nested.append((key, inner))
        rows.append(f"| `{key}` | {_default(field.default)} | {field.description} |")
    yield f"### {'`' + path.rstrip('.') + '`' if path else 'Top level'}\n" + "\n".join(rows)
    for key, inner in nested:
        yield from _sections(inner, f"{key}.")


def _section_of(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_of(inner) for inner in typing.get_args(annotation))
    return next((inner for inner in found if inner is not None), None)


def _default(default: object) -> str:
    if default is PydanticUndefined:
        return "**required**"
    if isinstance(default, BaseModel):
        return "see below"
    if isinstance(default, tuple):
        return (
            f"`[{', '.join(one.value if isinstance(one, enum.Enum) else one for one in default)}]`"
        )
    value = default.value if isinstance(default, enum.Enum) else default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`".replace("None", "null")


if __name__ == "__main__":
    (DOCS / "reference.md").write_text(render(), encoding="utf-8")
    (DOCS / "decisions" / "README.md").write_text(render_decisions(), encoding="utf-8")
