"""Who gave the command that changes a run, and how: written down with the fact that comes of it."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from orchestrator.ledger.facts import Command
from orchestrator.program import program_version
from orchestrator.redact import redact

# A command that lists more than this names files, which are no news.
_MOST_CHARACTERS = 2000


def this_command() -> Command:
    """Return who started this process, with which words and version, without secrets."""
    program, *words = sys.argv
    shown = [redact(word)[:_MOST_CHARACTERS] for word in (Path(program).name, *words)]
    return Command(user=_user(), argv=tuple(shown), version=program_version())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in containers whose user has no name
        return str(os.getuid())
