"""The nodes of one SkyPilot launch as process trees on loopback, started by the node's own entry.

Each has a home, a disk and a metadata service of its own; their store is a folder.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil

from checkpoints.fence import read_head
from checkpoints.store import open_store
from orchestrator.clock import SystemClock
from orchestrator.inputs import PreparedInputs, prepare_inputs, stage_files
from orchestrator.ledger.facts import Fact, QuotedOffer
from orchestrator.ledger.journal import Journal, LedgerReader
from orchestrator.ledger.record import RunRecord, create_record
from orchestrator.spec import RunSpec
from orchestrator.view import RunView, RunViewer
from tests.end_to_end.conftest import EXAMPLES
from tests.metadata_service import MetadataService, metadata_service
from tests.orchestrator.histories import make_offer, make_spec
from train.spool import Step, read_records

ROOT = Path(__file__).parents[3]
_MARK = "ORCHESTRATE_TEST_NODE"
_SAFE_PATH = ["-P"] if sys.version_info >= (3, 11) else []
# In every process of a node: a rank that is told to fails, in words of its own.
_FAILS_ON_SIGNAL = """
import os, signal
def fail(*_): raise RuntimeError("rank " + os.environ["RANK"] + " is on fire")
if "RANK" in os.environ: signal.signal(signal.SIGUSR2, fail)
"""


def gang_spec(store: str, **changes: object) -> RunSpec:
    return make_spec(
        **{
            "store": store,
            "infra": ["aws"],
            "local": None,
            "nodes": {"count": 2, "accelerators": "A100-80GB:8"},
            "model": {"base": str(EXAMPLES / "tiny-llama"), "max_length": 128},
            "data": {"train": str(EXAMPLES / "conversations.json")},
            "train": {"num_steps": 60, "global_batch": 4, "micro_batch": 2, "precision": "fp32"},
            "checkpoints": {"interval": "20 steps"},
            "limits": {"budget_usd": 500},
            **changes,
        }
    )


def prepare() -> PreparedInputs:
    return prepare_inputs(gang_spec("memory://nowhere"))


class Node:
    """One running node."""

    def __init__(self, process: subprocess.Popen[bytes], mark: str, console: Path) -> None:
        self.process, self._mark, self._console = process, mark, console

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(_MARK) == self._mark:
                    found.append(process)
        return found

    def ranks(self) -> list[psutil.Process]:
        """Return the training processes, not those that they or torchrun started."""
        commands = [(process, process.cmdline()) for process in self.processes()]
        return [p for p, c in commands if c[-3:-1] == ["-m", "train"] and "-u" in c]

    def kill(self) -> None:
        """Lose the node: SIGKILL of everything on it."""
        while family := self.processes():
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, 2)
        self.process.wait(10)

    def freeze(self) -> None:
        """Let the node vanish: nothing on it moves or closes a connection."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def last_step(self) -> int:
        """Return the last step that this node's spool has; only node 0's has any."""
        spools = self._console.parent.glob("orchestrate-scratch/*/spool/spool.jsonl")
        records = [record for spool in spools for record in read_records(spool, 0)[0]]
        return max((record.step for record in records if isinstance(record, Step)), default=0)

    def fail_a_rank(self) -> None:
        for process in self.ranks():
            process.send_signal(signal.SIGUSR2)

    def wait(self, seconds: float = 150) -> int:
        """Return the exit status of the node's entry."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it still runs; it said\n{self.said()}") from None

    def said(self) -> str:
        return self._console.read_text(errors="replace")


class GangRun:
    """A run and its launches, one after the other."""

    def __init__(
        self,
        folder: Path,
        inputs: PreparedInputs,
        stack: ExitStack,
        usd: tuple[str, str] = ("10", "8"),
        **changes: object,
    ) -> None:
        """Create the run; `usd` is what an hour costs where its nodes are, and elsewhere."""
        self.folder = folder
        self.stack = stack
        self.store = open_store((folder / "store" / "demo").as_uri())
        spec = gang_spec((folder / "store").as_uri(), **changes)
        stage_files(inputs.folder, inputs.files, self.store)
        self.record = create_record(self.store, _record(spec, inputs, usd))
        self.nodes: list[Node] = []
        self.metadata: list[MetadataService] = []
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(_FAILS_ON_SIGNAL)

    def launch(self, *, ranks: int = 1, **variables: str) -> list[Node]:
        """Start a new launch on new nodes."""
        port = free_ports()
        num_nodes = self.record.spec.nodes.count
        self.metadata = [self.stack.enter_context(metadata_service()) for _ in range(num_nodes)]
        self.nodes = [
            self._start(node, num_nodes, port, {"ORCHESTRATE_RANKS": str(ranks), **variables})
            for node in range(num_nodes)
        ]
        return self.nodes

    def _start(self, node: int, num_nodes: int, port: int, given: dict[str, str]) -> Node:
        mark = secrets.token_hex(4)
        home = self.folder / f"node-{mark}"
        home.mkdir()
        console = home / "console.log"
        variables = {
            **os.environ,
            "PYTHONPATH": f"{self.folder / 'site'}:{ROOT}",
            "OMP_NUM_THREADS": "1",
            "HOME": str(home),
            _MARK: mark,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{self.metadata[node].host}",
            "ORCHESTRATE_RUN_FOLDER": self.store.url,
            "SKYPILOT_NODE_RANK": str(node),
            "SKYPILOT_NUM_NODES": str(num_nodes),
            "SKYPILOT_NODE_IPS": "\n".join(["127.0.0.1"] * num_nodes),
            "SKYPILOT_NUM_GPUS_PER_NODE": "8",
            "SKYPILOT_CLUSTER_INFO": '{"cloud": "AWS"}',
            **given,
            "ORCHESTRATE_AGENT": json.dumps(
                {"port": port, **json.loads(given.get("ORCHESTRATE_AGENT", "{}"))}
            ),
        }
        with console.open("wb") as output:
            process = subprocess.Popen(
                # As sky/train.yaml says it; Python 3.10 has no such option.
                [sys.executable, *_SAFE_PATH, "-m", "orchestrator.cloud.skypilot.node"],
                cwd=home,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = Node(process, mark, console)
        self.stack.callback(started.kill)
        return started

    def log(self) -> str:
        """Return what the run folder has of the attempts' logs."""
        pieces = [self.store.get(entry.key).data for entry in self.store.list("logs/")]
        return b"".join(pieces).decode()

    def view(self) -> RunView:
        return RunViewer(self.store).look(SystemClock().now())

    def write(self, fact: Fact) -> None:
        Journal(self.store, "test", SystemClock()).note(fact)

    def facts(self, kind: type[Fact]) -> list[Fact]:
        return [entry.body for entry in LedgerReader(self.store).read() if type(entry.body) is kind]

    def wait_for_step(self, step: int) -> None:
        """Wait until the ranks have taken a step, by what is on node 0's disk."""
        self.wait_for(lambda: self.nodes[0].last_step() >= step)

    def wait_for_commit(self, step: int) -> None:
        """Wait until HEAD is at a step, or beyond: saves go on beside steps."""

        def is_there() -> bool:
            head = read_head(self.store)
            return head is not None and head[0].step >= step

        self.wait_for(is_there)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 150) -> None:
        give_up_at = time.monotonic() + seconds
        while not condition():
            said = "\n".join(node.said() for node in self.nodes)
            assert time.monotonic() < give_up_at, f"it never came true; the nodes said\n{said}"
            time.sleep(0.2)

    def announce(self, node: int, seconds: float) -> None:
        """Have the metadata service of a node say that it will be taken back."""
        at = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        action = {"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
        self.metadata[node].spot_action = action


def _record(spec: RunSpec, inputs: PreparedInputs, usd: tuple[str, str]) -> RunRecord:
    return RunRecord(
        run="demo",
        run_id=f"demo-{secrets.token_hex(2)}",
        created_at=SystemClock().now(),
        code_version="0",
        spec=spec,
        num_steps=spec.train.num_steps or 1,
        offers=(
            QuotedOffer.quote(make_offer(usd=usd[0])),
            QuotedOffer.quote(make_offer(region="us-west-2", usd=usd[1])),
        ),
        prices_source="a test",
        home_place=("aws", "us-east-1"),
        inputs=inputs.files,
        simulated=False,
        threads_per_rank=1,
    )


def free_ports() -> int:
    """Return a port that is free, as is the one after it."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            with suppress(OSError):
                second.bind(("127.0.0.1", port + 1))
                return int(port)
