"""A run folder with real weights, data and measurements, as small as what can be released."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from checkpoints.fence import claim_attempt, commit, read_head
from checkpoints.layout import event_key, shard_key, steps_key
from checkpoints.manifest import Manifest
from checkpoints.rank_object import Staged, merge, upload
from checkpoints.store import ObjectStore, open_store
from orchestrator.home import run_home
from orchestrator.inputs import describe_file, stage_files
from orchestrator.ledger.record import create_record
from orchestrator.runs import remember_run
from tests.orchestrator.histories import START, Ledger, at, make_record, measured_step
from train.data.dataset import write_dataset
from train.data.samples import Sample
from train.spool import Evaluated, Resumed

NUM_STEPS = 10
SHAPES = {"embed.weight": (50, 16), "layer.weight": (16, 16), "norm.weight": (16,)}


def make_weights(seed: int = 0, rows: int = 50) -> dict[str, np.ndarray]:
    """Return fp32 weights by name, as a base or a checkpoint has them."""
    random = np.random.default_rng(seed)
    shapes = SHAPES | {"embed.weight": (rows, 16)}
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def make_released_run(url: str, scratch: Path, weights: dict[str, np.ndarray]) -> ObjectStore:
    """Write a run that was preempted once and has finished, and return its folder.

    Step 6 was trained again, to the same bit.
    """
    folder = open_store(f"{url}/demo")
    record = make_record(store=url, model={"base": "someone/base"})
    inputs = _make_inputs(scratch)
    files = tuple(describe_file(path) for path in sorted(inputs.iterdir()))
    stage_files(inputs, files, folder)
    create_record(folder, record.model_copy(update={"inputs": files}))
    remember_run(run_home(url, "demo"), "demo", url)
    for _ in range(2):
        claimed = claim_attempt(
            folder, claimed_by="a", claimed_at=START, world_size=1, offer={}
        ).attempt
    _save(folder, claimed, weights)
    ledger = Ledger()
    ledger.launched()
    ledger.launch("one", 0, until=20, attempt=1)
    ledger.commit(10, attempt=1, step=5)
    ledger.launch("two", 30, attempt=2, step=5)
    ledger.commit(50, attempt=2, step=NUM_STEPS)
    ledger.ended(60)
    for number, entry in enumerate(ledger.entries):
        folder.create(event_key(f"w{number}", 0), entry.model_dump_json().encode())
    _write_steps(folder, 1, range(1, 7), began=3)
    _write_steps(folder, 2, range(6, NUM_STEPS + 1), began=35)
    return folder


def _make_inputs(scratch: Path) -> Path:
    inputs = scratch / "inputs"
    inputs.mkdir(parents=True)
    (inputs / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "x"}))
    (inputs / "tokenizer.json").write_text("{}")
    samples = [
        Sample(id=name, tokens=np.arange(8, dtype=np.int32), trained=np.ones(8, np.uint8))
        for name in ("a", "a", "b")
    ]
    write_dataset(inputs / "train.safetensors", samples, [[0, 1], [2]])
    write_dataset(inputs / "eval.safetensors", samples[:1], [[0]])
    return inputs


def _save(folder: ObjectStore, attempt: int, weights: dict[str, np.ndarray]) -> None:
    key = shard_key(NUM_STEPS, attempt, 0, 1)
    staged = [
        Staged(
            name=f"{kind}.{name}",
            dtype="F32",
            shape=values.shape,
            first=0,
            rows_shape=values.shape,
            memory=memoryview(values.tobytes()),
        )
        for kind in ("model", "optimizer")
        for name, values in weights.items()
    ]
    part = upload(folder, key, staged)
    found = read_head(folder)
    assert found is not None
    manifest = Manifest(
        run="demo",
        attempt=attempt,
        step=NUM_STEPS,
        parent=found[0].manifest,
        world_size=1,
        created_at=at(50),
        objects=(part.object,),
        tensors=merge([part]),
        state={},
    )
    commit(folder, manifest)


def _write_steps(folder: ObjectStore, attempt: int, steps: range, began: float) -> None:
    resumed = Resumed(
        at=at(began),
        step=steps.start - 1,
        manifest=None,
        num_bytes=0,
        seconds=0,
        world_size=2,
        device="a test's processor",
        numerics="0123456789abcdef",
    )
    records = [
        resumed,
        *(
            measured_step(attempt, step, began + step - steps.start, loss=3 - step / 10).record
            for step in steps
        ),
        Evaluated(
            at=at(began + 10), step=steps.stop - 1, loss=2.5 - attempt / 10, num_trained_tokens=8
        ),
    ]
    lines = "\n".join(one.model_dump_json() for one in records)
    folder.create(steps_key(attempt, 0), lines.encode())
