"""Nodes of real SkyPilot whose server and controllers are gone for good: each ends itself.

python -m tests.end_to_end.left_alone FOLDER: a quarter of an hour, nearly all of it waiting, so by
hand and not in CI. One node trains; the set-up of another hangs, and is bounded to a minute instead
of an hour. Prints the minutes that each lived on as JSON; the exit status says whether both ended
in time.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import yaml

from orchestrator.cloud.skypilot.task import read_task
from tests.cell.cell import Cell
from tests.end_to_end.clouds import NUM_STEPS, PLUGIN, SPEC, Laptop

_TRAINS, _IS_SET_UP = "trains", "is-set-up"
_BEGAN = "is-set-up/began"
# Before this line of the set-up nothing has been done, and its end bounds it to an hour.
_FIRST_LINE, _BOUND = 'export PATH="$HOME/.local/bin:$PATH"', " 3600 bash"
_SAY_SO = f"import boto3; boto3.client('s3').put_object(Bucket='runs', Key='{_BEGAN}', Body=b'')"
_HAS_BEGUN = f"import boto3; boto3.client('s3').head_object(Bucket='runs', Key='{_BEGAN}')"
_UP_S, _LOOK_S = 600.0, 10.0
# From the owner's last word; the second: a minute of set-up, ten without a job and skylet's look.
_MOST_M = {_TRAINS: 15.0, _IS_SET_UP: 13.0}


def main() -> int:
    cell = Cell(Path(sys.argv[1]))
    cell.up(fresh=True, plugins=[PLUGIN])
    try:
        return _leave_alone(cell)
    finally:
        cell.down()


def _leave_alone(cell: Cell) -> int:
    laptop = Laptop(cell, cell.places.base / "laptop", _TRAINS)
    laptop.folder.mkdir()
    laptop.environment["ORCHESTRATE_RANKS"] = "1"
    laptop.launch(train={**dict(SPEC["train"]), "num_steps": 1000 * NUM_STEPS})
    laptop.wait_for(lambda status: status["last_commit_step"], seconds=_UP_S)
    _set_up(cell, laptop.folder / "task.yaml")
    committed = laptop.status()["last_commit_step"]
    cell.kill_server()
    killed_at = time.time()
    lived_m: dict[str, float] = {}
    give_up_at = killed_at + 60 * max(_MOST_M.values())
    while time.time() < give_up_at and len(lived_m) < len(_MOST_M):
        for name in _MOST_M.keys() - lived_m.keys():
            (node,) = cell.instances(name)
            if node.ended is not None:
                lived_m[name] = round((node.ended.timestamp() - killed_at) / 60, 1)
                print(name, lived_m[name], flush=True)  # noqa: T201 - progress of a long command
        time.sleep(_LOOK_S)
    status = laptop.status()
    found = {
        "minutes_lived_on": lived_m,
        "committed": [committed, status["last_commit_step"]],
        "step": status["step"],
        "asked_of_ec2": sorted(
            {one.detail["action"] for one in cell.events() if one.kind == "aws_called"}
        ),
    }
    print(json.dumps(found, indent=1))  # noqa: T201 - its result
    return 0 if all(lived_m.get(name, 1e9) <= most for name, most in _MOST_M.items()) else 1


def _set_up(cell: Cell, path: Path) -> None:
    """Have SkyPilot start a node whose set-up does not end, and return when it has begun."""
    script = read_task("train.yaml")["setup"]
    assert _FIRST_LINE in script
    assert _BOUND in script
    hangs = f'"$HOME/orchestrate-env/bin/python" -c "{_SAY_SO}"\nsleep 100000\n'
    script = script.replace(_FIRST_LINE, hangs + _FIRST_LINE).replace(_BOUND, " 60 bash")
    task = {
        "name": _IS_SET_UP,
        "resources": {"infra": "aws", "accelerators": "A100:8", "use_spot": True},
        "setup": script,
        "run": "true",
    }
    path.write_text(yaml.safe_dump(task))
    cell.run(["sky", "jobs", "launch", "--yes", "--detach-run", path], check=True)
    give_up_at = time.monotonic() + _UP_S
    while cell.run(["python", "-c", _HAS_BEGUN]).returncode:
        assert time.monotonic() < give_up_at, "its set-up has not begun"
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
