"""Whole training attempts in real processes, as on a node, followed through their spool."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from checkpoints.fence import claim_attempt, read_head
from checkpoints.manifest import Manifest
from checkpoints.store import open_store
from tests.train.forked import ForkedTrainer
from train.config import CheckpointOptions, ModelOptions, TrainConfig, TrainOptions
from train.spool import read_outcome, read_records, spool_path

ROOT = Path(__file__).parents[2]
NUM_STEPS = 6
# Long enough for tests to act within a step: 8 micro-batches of about 20 ms on each of 2 ranks.
OPTIONS = TrainOptions(
    num_steps=NUM_STEPS, global_batch=15, micro_batch=1, learning_rate=1e-2, precision="fp32"
)
MODEL = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "max_position_embeddings": 256,
    # One tensor under two names; the model of examples/ has two tensors.
    "tie_word_embeddings": True,
    # One that 2 ranks cannot split evenly, and one that needs a generator.
    "attention_dropout": 0.1,
}


def now():
    return datetime.now(timezone.utc)


class Run:
    """A run folder and the attempts that a test makes on it."""

    def __init__(self, folder, inputs_dir):
        self.folder = folder
        self.inputs_dir = inputs_dir
        self.notice_file = folder / "notice.json"
        self.url = f"file://{folder}/run"
        self.store = open_store(self.url)
        self.processes = []

    def claim(self, world_size=2):
        return claim_attempt(
            self.store, claimed_by="test", claimed_at=now(), world_size=world_size, offer={}
        )

    def start(
        self,
        *,
        world_size=2,
        torchrun=False,
        owner_pid=None,
        flush_timeout_s=0.0,
        objects_store=None,
        num_steps=NUM_STEPS,
        launcher=None,
        nodes=1,
        interval="2 steps",
        **train,
    ):
        claim = self.claim(world_size)
        self.spool_dir = self.folder / f"spool-{claim.attempt}"
        config = TrainConfig(
            run="test",
            attempt=claim.attempt,
            store=self.url,
            objects_store=objects_store,
            parent=claim.parent,
            inputs_dir=self.inputs_dir,
            num_steps=num_steps,
            model=ModelOptions(base="tiny", max_length=200),
            train=OPTIONS.model_copy(update=train),
            checkpoints=CheckpointOptions(interval=interval, keep_last=10),
            spool_dir=self.spool_dir,
            notice_file=self.notice_file,
            owner_pid=owner_pid,
            flush_timeout_s=flush_timeout_s,
        )
        path = self.folder / f"config-{claim.attempt}.json"
        path.write_text(config.model_dump_json())
        self.log = self.folder / f"log-{claim.attempt}.txt"
        temporary = self.folder / "tmp"  # torchrun leaves its folders
        temporary.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(temporary),
        }
        self.log.touch()
        if torchrun:
            launcher = ["-m", "torch.distributed.run", *torchrun_arguments(world_size)]
        if launcher is not None:
            command = [sys.executable, *launcher, "-m", "train", str(path)]
            with self.log.open("wb") as log:
                self.processes = [
                    subprocess.Popen(command, env=environment, stderr=log, stdout=log)
                ]
            return
        ranks = [{}] if world_size == 1 else rank_environments(world_size, nodes)
        self.processes = [ForkedTrainer(path, {**environment, **rank}, self.log) for rank in ranks]

    def records(self, kind):
        return [r for r in read_records(spool_path(self.spool_dir), 0)[0] if r.kind == kind]

    def wait_until(self, condition, timeout_s=90):
        give_up_at = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < give_up_at, self.log.read_text()
            ended = [p.returncode for p in self.processes if p.poll() is not None]
            assert not ended or condition(), (ended, self.log.read_text())
            time.sleep(0.005)

    def wait(self, timeout_s=90):
        return [process.wait(timeout_s) for process in self.processes]

    def kill(self):
        # All before any is waited for: a rank that outlives another says why it fails.
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def outcomes(self, world_size=2):
        return [read_outcome(self.spool_dir, rank) for rank in range(world_size)]

    def step_values(self):
        return {r.step: (r.loss, r.grad_norm, r.learning_rate) for r in self.records("step")}

    def head_manifest(self):
        head, _ = read_head(self.store)
        return Manifest.from_json(self.store.get(head.manifest).data)


def torchrun_arguments(world_size):
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return ["--nproc-per-node", str(world_size), *rendezvous]


def rank_environments(world_size, nodes=1):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sizes = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size // nodes)}
    return [
        {**common, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank % (world_size // nodes))}
        for rank in range(world_size)
    ]


@contextmanager
def running(folder, inputs_dir):
    folder.mkdir(exist_ok=True)
    run = Run(folder, inputs_dir)
    try:
        yield run
    finally:
        run.kill()


def without_dropout(inputs_dir, tmp_path):
    folder = tmp_path / "inputs"
    if not folder.exists():
        folder.mkdir()
        for path in inputs_dir.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        config = json.loads((inputs_dir / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))
    return folder
