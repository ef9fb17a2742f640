"""Which models are served, and under which names: folders, and checkpoints of runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InputError, UsageError
from orchestrator.exporting import Export, exported
from orchestrator.runs import find_run

# Servers take a slash for a repository and an @ for a revision.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A Hugging Face folder and the name that clients ask for."""

    name: str
    folder: Path
    export: Export | None = None
    """Which checkpoint of which run it is, if it is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What [NAME=]WHERE asks for, before anybody has looked for it: a folder, else a run."""

    name: str
    folder: Path | None = None
    run: str = ""
    step: int | None = None


def find_models(texts: Sequence[str], store: str | None) -> list[ServedModel]:
    """Return what [NAME=]WHERE stands for, one by one.

    Raises:
        UsageError: a name is given twice, or cannot be one.
        InputError: there is no such model.
    """
    models = [find_model(text, store) for text in texts]
    refuse_same_names([model.name for model in models])
    return models


def refuse_same_names(names: Sequence[str]) -> None:
    """Raise UsageError if two models have the same name."""
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"Two models are called {name!r}.", "Give one another name: NAME=FOLDER."
            )


def find_model(text: str, store: str | None = None) -> ServedModel:
    """Return the model of [NAME=]FOLDER, [NAME=]RUN or [NAME=]RUN@STEP; a folder comes first.

    Raises what `find_models` raises, and what exporting a run's checkpoint raises.
    """
    wanted = parse_wanted(text)
    if wanted.folder is not None:
        return ServedModel(name=wanted.name, folder=wanted.folder)
    found = exported(find_run(wanted.run, store), wanted.step)
    return ServedModel(name=wanted.name, folder=found.folder, export=found)


def parse_wanted(text: str) -> Wanted:
    """Take [NAME=]WHERE apart; a folder is looked into, a run is not.

    Raises:
        UsageError: the name cannot be one.
        InputError: the folder holds no model.
    """
    given, _, where = text.rpartition("=")
    folder = find_folder(where)
    if folder is not None:
        wanted = Wanted(name=given or folder.resolve().name, folder=_checked(folder))
    elif "/" in where:
        raise _no_model(where)
    else:
        wanted = _of_run(given, where)
    if _NAME.fullmatch(wanted.name) is None:
        raise UsageError(
            f"{wanted.name!r} cannot be a model's name.",
            f"Letters, digits, dots and dashes can: NAME={where}",
        )
    return wanted


def find_folder(where: str) -> Path | None:
    """Return the folder of that path, None if there is none."""
    try:
        folder = Path(where).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # a path that is too long, or below the home of nobody
        return None


def _no_model(where: object) -> InputError:
    return InputError(
        f"{where} holds no config.json: it is no model.",
        "Give a Hugging Face folder, or a run: orchestrate status lists them.",
    )


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise _no_model(folder)
    if not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        raise InputError(
            f"{folder} holds no weights.", "It needs *.safetensors beside config.json."
        )
    return folder.resolve()


def _of_run(given: str, where: str) -> Wanted:
    run, at, step = where.partition("@")
    if at and not step.isdecimal():
        raise UsageError(f"{where!r} names no step.", f"Give a number: {run}@1200")
    name = given or where.replace("@", "-")
    return Wanted(name=name, run=run, step=int(step) if at else None)
