"""The command line inside the cell, on a small run whose nodes are real SkyPilot's."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from orchestrator.notify.addresses import NOTIFY
from tests import message_service
from tests.cell.cell import Cell
from tests.cell.places import GATEWAY
from tests.cell.records import Instance
from tests.end_to_end.conftest import EXAMPLES
from tests.fault_record import record_fault

T = TypeVar("T")

PLUGIN = "orchestrator.cloud.plugin.OrchestratePlugin"
NUM_STEPS = 30
_NEWS_PORT = 18645
# The last look of whoever tells, and its retries.
_NEWS_S = 60
SPEC: dict[str, object] = {
    "infra": ["aws"],
    "nodes": {"count": 1, "accelerators": "A100:8"},
    "model": {"base": str(EXAMPLES / "tiny-llama"), "max_length": 256},
    "data": {"train": str(EXAMPLES / "conversations.json"), "eval_fraction": 0.05},
    # Steps of some tenths of a second: what is done to a node is done before the run is over.
    "train": {"num_steps": NUM_STEPS, "global_batch": 16, "micro_batch": 4, "precision": "fp32"},
    "checkpoints": {"interval": "10 steps"},
    # Auto would sit out minutes for a cheaper zone: most tests want the next node at once.
    "limits": {"budget_usd": 200, "deadline": "20h", "policy": "greedy"},
    "tracking": {"wandb": {"project": "cell"}},
}


class Laptop:
    """A user's machine in the cell: `orchestrate` there, and what the clouds have of its run."""

    def __init__(self, cell: Cell, folder: Path, name: str) -> None:
        self.cell = cell
        self.folder = folder
        self.name = name
        self.environment = {
            "ORCHESTRATE_HOME": str(folder / "home"),
            "ORCHESTRATE_RANKS": "2",
            # Steps are seen soon, or a killed node has little to compare with.
            "ORCHESTRATE_AGENT": json.dumps({"upload_seconds": 1}),
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
        }
        self._looking: Any = None

    def close(self) -> None:
        """End what looks at the run."""
        if self._looking is not None:
            with self._looking:  # waits for it, and closes its pipes
                self._looking.kill()

    @contextlib.contextmanager
    def listening(self) -> Iterator[Callable[[], list[str]]]:
        """Have news of runs launched from here sent to a service in the cell; yields its titles."""
        copy = self.folder / "told.txt"
        serve = ["python", Path(message_service.__file__), GATEWAY, str(_NEWS_PORT), copy]
        service = self.cell.start(serve)
        secret = message_service.SECRET
        address = f"json://user:{secret}@{GATEWAY}:{_NEWS_PORT}/{secret}"
        self.environment[NOTIFY] = address
        yield lambda: copy.read_text().splitlines() if copy.exists() else []
        service.kill()
        service.wait()

    def write_spec(self, **changes: object) -> Path:
        path = self.folder / f"{self.name}.yaml"
        spec = {"name": self.name, "store": self.cell.store_url, **SPEC, **changes}
        path.write_text(yaml.safe_dump(spec))
        return path

    def run(self, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = ["orchestrate", *map(str, arguments)]
        return self.cell.run(command, env=self.environment, timeout=timeout)

    def start(self, *arguments: object) -> Any:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = ["orchestrate", *map(str, arguments)]
        return self.cell.start(command, env=self.environment, **pipes)

    def launch(self, **changes: object) -> None:
        done = self.run("launch", self.write_spec(**changes), "--yes", "--detach")
        assert done.returncode == 0, done.stderr

    def status(self) -> dict[str, Any]:
        return self._document("status")

    def cost(self) -> dict[str, Any]:
        return self._document("cost")

    def wait_for(
        self, what: Callable[[dict[str, Any]], T], seconds: float = 400, every: float = 0.3
    ) -> T:
        """Return the first true answer of `what` about the run's status."""
        give_up_at = time.monotonic() + seconds
        while not (found := what(status := self._look())):
            assert time.monotonic() < give_up_at, f"it never came true: {status}\n{self.log()}"
            assert status["ended_at"] is None, f"it never came true: {status}\n{self.log()}"
            time.sleep(every)
        return found

    def _look(self) -> dict[str, Any]:
        """Return the status of the run, which has been launched, by one process for all looks."""
        if self._looking is None:
            script = Path(__file__).with_name("looking.py")
            command = ["python", script, f"{self.cell.store_url}/{self.name}"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._looking = self.cell.start(command, env=self.environment, **pipes)
        self._looking.stdin.write("\n")
        self._looking.stdin.flush()
        document = json.loads(self._looking.stdout.readline())
        assert isinstance(document, dict)
        return document

    def wait_for_news(self, told: Callable[[], list[str]], last: str) -> list[str]:
        """Return what was told, without the run's name, once `last` is among it."""
        give_up_at = time.monotonic() + _NEWS_S
        while f"{self.name}: {last}" not in (titles := told()):
            assert time.monotonic() < give_up_at, f"{titles}\n{self.log()}"
            time.sleep(0.5)
        return [title.removeprefix(f"{self.name}: ") for title in titles]

    def wait_for_step(self, attempt: int, step: int) -> None:
        def is_there(status: dict[str, Any]) -> bool:
            number = status["attempts"][-1]["attempt"] if status["attempts"] else 0
            return bool(number == attempt and status["step"] >= step) or number > attempt

        self.wait_for(is_there)

    def wait_for_rework(self, step: int) -> int:
        """Wait until `step` is behind and steps are known that no checkpoint has.

        Returns the last step that one has.
        """

        def is_there(status: dict[str, Any]) -> tuple[int] | None:
            committed = int(status["last_commit_step"] or 0)
            is_ahead = 2 <= status["step"] - committed < 8 and status["step"] >= step
            return (committed,) if is_ahead else None

        return self.wait_for(is_there, every=0.1)[0]

    def record(self, fault: str, what: str, *, committed: int | None = None) -> None:
        """Leave a row of the run, which is over; `committed` is the step that was when it hit."""
        lost = None
        if committed is not None:
            lost = max(0, committed - self.status()["attempts"][-1]["resumed_step"])
        record_fault(
            fault,
            f"{what} (real SkyPilot)",
            injected=1,
            committed_steps_lost=lost,
            orphans=len(self.living()),
        )

    def wait_for_end(self, state: str = "SUCCEEDED") -> dict[str, Any]:
        def has_ended(status: dict[str, Any]) -> dict[str, Any] | None:
            return status if status["ended_at"] is not None else None

        self.wait_for(has_ended)
        status = self.status()
        assert status["state"] == state, f"{status}\n{self.log()}"
        decisions = self.replay_decisions()
        assert all(is_equal for _, _, is_equal in decisions), decisions
        return status

    def replay_decisions(self) -> list[tuple[str, str, bool]]:
        """Return what was decided, and whether the ledger alone gives the same again."""
        script = Path(__file__).with_name("decisions.py")
        done = self.cell.run(["python", script, f"s3://runs/{self.name}"], check=True)
        return [tuple(one) for one in json.loads(done.stdout)]

    def living(self) -> list[Instance]:
        return [one for one in self.cell.instances(self.name) if one.is_alive]

    def wait_for_nodes(self, num: int, seconds: float = 120) -> list[Instance]:
        give_up_at = time.monotonic() + seconds
        while len(found := self.living()) != num:
            assert time.monotonic() < give_up_at, f"{len(found)} nodes and not {num}\n{self.log()}"
            time.sleep(0.5)
        return found

    def log(self) -> str:
        """Return what SkyPilot's controller and the agents said, for a test that fails."""
        said = self.cell.run(["sky", "jobs", "queue", "--all"], timeout=60).stdout
        logs = sorted((self.cell.places.home / "sky_logs" / "jobs_controller").glob("[0-9]*.log"))
        lines = logs[-1].read_text(errors="replace").splitlines() if logs else []
        told = [line for line in lines if "sky-payload" not in line]
        return "\n".join([said, *told[-60:], self.run("logs", self.name).stdout[-3000:]])

    def _document(self, command: str) -> dict[str, Any]:
        done = self.run(command, self.name, "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert isinstance(document, dict)
        return document
