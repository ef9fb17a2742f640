"""What the trainer's programs (`python -m train.data...`) complain of, as our errors."""

from __future__ import annotations

import json

from orchestrator.errors import InputError, MissingDependency


def problem_of(said: str, what: str) -> InputError | MissingDependency:
    """Return the error for the last line that a program said; `what` was being done."""
    last_line = (said.strip().splitlines() or ["it said nothing"])[-1]
    if "ModuleNotFoundError" in last_line:
        return MissingDependency(
            f"{what} needs the trainer's libraries ({last_line}).",
            "Install them: pip install -c constraints.txt -e '.[train]'",
        )
    try:
        complaint = json.loads(last_line)
        return InputError(complaint["what"], complaint["next_step"])
    except (ValueError, KeyError, TypeError):
        return InputError(f"{what} failed: {last_line}", "See the line above.")
