"""Say a run's status as often as it is asked for: python looking.py STORE/RUN, a line each.

What `orchestrate status RUN --json` says, without the half second of processor time that each of
its processes begins with. Tests that wait ask hundreds of times.
"""

# ruff: noqa: T201 a script prints its results

from __future__ import annotations

import json
import sys

from checkpoints.store import open_store
from orchestrator.clock import SystemClock
from orchestrator.report import status_document
from orchestrator.view import RunViewer


def main() -> None:
    reader = RunViewer(open_store(sys.argv[1]))
    for _ in sys.stdin:
        print(json.dumps(status_document(reader.look(SystemClock().now()))), flush=True)


if __name__ == "__main__":
    main()
