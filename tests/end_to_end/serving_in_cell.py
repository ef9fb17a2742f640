"""A service on real SkyServe in the cell: it comes up, a replica is preempted, requests go on.

python -m tests.end_to_end.serving_in_cell FOLDER [NOTICE_SECONDS]: 6 to 8 minutes, so by hand and
not in CI. Prints its figures as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cell.cell import Cell
from tests.end_to_end.clouds import Laptop
from tests.end_to_end.conftest import EXAMPLES

KEY = "a-key-for-the-cell"
_UP_S, _LOOK_S = 400.0, 2.0
# Until the node is gone, SkyServe has seen it and the load balancer has looked again.
_AFTERWARDS_S = 60
_CLIENTS = 4


def main() -> None:
    cell = Cell(Path(sys.argv[1]))
    notice = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    cell.up(fresh=True)
    laptop = Laptop(cell, cell.places.base / "laptop", "served")
    laptop.folder.mkdir()
    laptop.environment["ORCHESTRATE_SERVE_API_KEY"] = KEY
    figures: dict[str, Any] = {"notice_s": notice}
    _train(laptop)
    started = time.monotonic()
    words = ["--accelerators", "A100:8", "--infra", "aws,gcp", "--market", "spot"]
    done = laptop.run("serve", laptop.name, "--replicas", 2, *words, "--yes")
    assert done.returncode == 0, done.stderr
    url = done.stdout.strip()
    _wait(lambda: len(_ready(laptop)) == 2)
    figures["both_ready_s"] = round(time.monotonic() - started)
    load = Path(__file__).with_name("serving_load.py")
    seconds = 20 + notice + _AFTERWARDS_S
    asking = cell.start(
        ["python", load, url, laptop.name, str(seconds), str(_CLIENTS)],
        env=laptop.environment,
        stdout=-1,
    )
    time.sleep(20)
    told_at = time.time()
    cell.preempt("served-1", notice)
    out, _ = asking.communicate(timeout=seconds + 120)
    figures |= _of_requests(json.loads(out), told_at, notice)
    _wait(lambda: len(_ready(laptop)) == 2 and 1 not in _ready(laptop))
    figures["both_ready_again_s"] = round(time.time() - told_at)
    laptop.run("serve", "--down", laptop.name, "--yes")
    _wait(lambda: not laptop.living())
    cost = json.loads(laptop.run("cost", laptop.name, "--json").stdout)
    figures["serving"] = cost["serving"]
    figures["instances"] = [
        [
            one.zone,
            "spot" if one.spot else "on_demand",
            round((one.ended - one.launched).total_seconds()),
        ]
        for one in cell.instances(laptop.name)
        if one.ended is not None
    ]
    json.dump(figures, sys.stdout, indent=1)
    cell.down()


def _train(laptop: Laptop) -> None:
    """Have a model of the tiny example, trained by nodes of this machine into the cell's bucket."""
    changes = ["local.preemptions=[]", "train.num_steps=6", f"name={laptop.name}"]
    changes.append(f"store={laptop.cell.store_url}")
    options = [word for change in changes for word in ("--set", change)]
    done = laptop.run("launch", EXAMPLES / "quickstart.yaml", "--yes", *options)
    assert done.returncode == 0, done.stderr


def _ready(laptop: Laptop) -> list[int]:
    document = json.loads(laptop.run("serve", "--status", laptop.name, "--json").stdout)
    (service,) = document["services"]
    return [one["replica"] for one in service["replicas"] if one["status"] == "READY"]


def _wait(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + _UP_S
    while not is_so():
        assert time.monotonic() < give_up_at, "it has not come about"
        time.sleep(_LOOK_S)


def _of_requests(asked: list[tuple[float, float, str]], told_at: float, notice: float) -> Any:
    periods = {
        "before": (0.0, told_at),
        "notice": (told_at, told_at + notice),
        "after": (told_at + notice, time.time()),
    }
    return {
        name: {
            **Counter(how for at, _, how in asked if start <= at < end),
            "slowest_s": round(max(took for at, took, _ in asked if start <= at < end), 1),
        }
        for name, (start, end) in periods.items()
    }


if __name__ == "__main__":
    main()
