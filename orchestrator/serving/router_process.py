"""The router's process: smg, with keys that its own command takes as flags, for all to see.

Run: python -m orchestrator.serving.router_process FLAGS OF `smg launch`
"""

from __future__ import annotations

import os
import sys

from smg.launch_router import launch_router, parse_router_args

from orchestrator.serving.router import CONTROL_VARIABLE, KEY_VARIABLE


def main() -> None:
    """Route until a signal comes, then finish what is being answered."""
    arguments = parse_router_args(sys.argv[1:])
    arguments.api_key = os.environ.get(KEY_VARIABLE) or None
    # Id, name, key, role. Without one of its own, who may ask a model may also register a worker,
    # and read what others ask.
    control = os.environ[CONTROL_VARIABLE]
    arguments.control_plane_api_keys = [("group", "group", control, "admin")]
    launch_router(arguments)


if __name__ == "__main__":
    main()
