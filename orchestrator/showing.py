"""What conversations become in training: `python -m train.data.show`, run as a program."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from orchestrator.complaints import problem_of


class ShownConversation(BaseModel):
    """A whole conversation: for each token its id, whether it is trained, and its text."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    token_ids: tuple[int, ...]
    trained: tuple[int, ...]
    pieces: tuple[str, ...]


def show(
    file: Path, id_: str | None, tokenizer: Path | None, template: str
) -> Generator[ShownConversation]:
    """Yield the conversations of a file, or one.

    Raises:
        InputError: the file, the tokenizer or the id cannot be used.
        MissingDependency: the trainer's libraries are not installed.
    """
    # Absolute, for it runs in an empty folder: a folder `train` where we are would shadow ours.
    command = [sys.executable, "-m", "train.data.show", str(file.resolve()), "--template", template]
    command += [] if id_ is None else [f"--id={id_}"]
    command += [] if tokenizer is None else ["--tokenizer", str(tokenizer.resolve())]
    with (
        tempfile.TemporaryDirectory() as scratch,
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            command, cwd=scratch, stdout=subprocess.PIPE, stderr=complaints, text=True
        ) as program,
    ):
        assert program.stdout is not None
        with closing(program.stdout):  # whoever reads no further ends it
            for line in program.stdout:
                yield ShownConversation.model_validate_json(line)
        if program.wait() != 0:
            complaints.seek(0)
            raise problem_of(complaints.read(), "Tokenizing")
