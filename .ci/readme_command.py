"""Print the shell command that the README marks with `<!-- command: NAME -->`, so CI runs that."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def main(name: str) -> None:
    """Print the fenced block that follows the marker; exit 1 if there is none."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- command: {re.escape(name)} -->\s*```\w*\n(.*?)```", readme, re.DOTALL)
    if found is None:
        sys.exit(f"README.md marks no command {name!r}")
    sys.stdout.write(found[1])


if __name__ == "__main__":
    main(sys.argv[1])
