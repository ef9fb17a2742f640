"""Which models are served, and under which names: folders, and checkpoints of runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InputError, UsageError
from orchestrator.exporting import exported
from orchestrator.runs import find_run

# Servers take a slash for a repository and an @ for a revision.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A Hugging Face folder and the name that clients ask for."""

    name: str
    folder: Path


def find_models(texts: Sequence[str], store: str | None) -> list[ServedModel]:
    """Return what [NAME=]WHERE stands for, one by one.

    Raises:
        UsageError: a name is given twice, or cannot be one.
        InputError: there is no such model.
    """
    models = [find_model(text, store) for text in texts]
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"Two models are called {name!r}.", "Give one another name: NAME=FOLDER."
            )
    return models


def find_model(text: str, store: str | None = None) -> ServedModel:
    """Return the model of [NAME=]FOLDER, [NAME=]RUN or [NAME=]RUN@STEP; a folder comes first.

    Raises what `find_models` raises, and what exporting a run's checkpoint raises.
    """
    given, _, where = text.rpartition("=")
    folder = Path(where).expanduser()
    if folder.is_dir() or "/" in where:
        model = ServedModel(name=given or folder.resolve().name, folder=_checked(folder))
    else:
        model = _of_run(given, where, store)
    if _NAME.fullmatch(model.name) is None:
        raise UsageError(
            f"{model.name!r} cannot be a model's name.",
            f"Letters, digits, dots and dashes can: NAME={where}",
        )
    return model


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds no config.json: it is no model.",
            "Give a Hugging Face folder, or a run: orchestrate status lists them.",
        )
    if not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        raise InputError(
            f"{folder} holds no weights.", "It needs *.safetensors beside config.json."
        )
    return folder.resolve()


def _of_run(given: str, where: str, store: str | None) -> ServedModel:
    run, at, step = where.partition("@")
    if at and not step.isdecimal():
        raise UsageError(f"{where!r} names no step.", f"Give a number: {run}@1200")
    folder, _ = exported(find_run(run, store), int(step) if at else None)
    return ServedModel(name=given or where.replace("@", "-"), folder=folder)
