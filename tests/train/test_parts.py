"""The pure parts of training: order, micro-batches, schedule, configuration, spool."""

import math
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from train.config import (
    CheckpointOptions,
    Interval,
    ModelOptions,
    TrainConfig,
    TrainOptions,
    load_config,
    resolve_num_steps,
)
from train.data.dataset import Segment
from train.data.order import batch_sequences, sequence_index, split_eval
from train.errors import ConfigInvalid, SpoolInvalid
from train.optimizer import learning_rate
from train.report import step_line
from train.spool import (
    Notice,
    Outcome,
    OutcomeKind,
    Resumed,
    Spool,
    Step,
    outcome_path,
    read_notice,
    read_outcome,
    read_records,
    spool_path,
    write_notice,
    write_outcome,
    write_uploaded,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 50), n=st.integers(1, 200))
def test_every_epoch_shows_every_sequence_once(seed, epoch, n):
    assert sorted(sequence_index(seed, epoch, p, n) for p in range(n)) == list(range(n))


def test_the_order_is_the_one_that_checkpoints_were_written_under():
    # Changing these numbers breaks the resume of every run there is.
    assert [sequence_index(0, 0, p, 8) for p in range(8)] == [3, 7, 4, 2, 1, 6, 5, 0]
    assert [sequence_index(0, 1, p, 8) for p in range(8)] != [
        sequence_index(0, 0, p, 8) for p in range(8)
    ]


@given(
    global_batch=st.integers(1, 20), n=st.integers(1, 30), first=st.integers(0, 10), seed=st.just(1)
)
def test_steps_take_the_stream_in_order_wherever_they_begin(global_batch, n, first, seed):
    stream = [sequence_index(seed, p // n, p % n, n) for p in range(global_batch * (first + 2))]
    resumed = [
        s for step in (first, first + 1) for s in batch_sequences(seed, step, global_batch, n)
    ]
    assert resumed == stream[first * global_batch :]


@given(num_samples=st.integers(1, 20), world_size=st.integers(1, 6), size=st.integers(1, 5))
def test_ranks_share_a_step_without_overlap_in_equally_many_micro_batches(
    num_samples, world_size, size
):
    from train.batch import micro_batches

    dataset = [
        [Segment(tokens=np.full(3, n, dtype=np.int32), trained=np.array([0, 1, 0], dtype=np.uint8))]
        for n in range(30)
    ]
    samples = list(range(30))[:num_samples]
    per_rank = [
        list(micro_batches(dataset, samples, rank=r, world_size=world_size, size=size))
        for r in range(world_size)
    ]
    assert len({len(batches) for batches in per_rank}) == 1
    assert all(
        [b.is_last for b in batches] == [False] * (len(batches) - 1) + [True]
        for batches in per_rank
    )
    seen = [label for batches in per_rank for batch in batches for label in batch.labels_N.tolist()]
    assert sorted(seen) == samples


def test_the_evaluation_split_is_the_seeds_and_leaves_something_to_train():
    assert split_eval(1, 1000, 0.01) == split_eval(1, 1000, 0.01)
    assert len(split_eval(1, 1000, 0.01)) == 10
    assert split_eval(1, 1000, 0.01) != split_eval(2, 1000, 0.01)
    assert len(split_eval(1, 5, 0.01)) == 1
    assert split_eval(1, 1, 0.9) == frozenset()
    assert split_eval(1, 100, 0.0) == frozenset()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [0.5, 1.0, 1.0, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.5 - math.sqrt(0.5) / 2]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_learning_rate(schedule, expected):
    options = TrainOptions(num_steps=6, learning_rate=1.0, warmup_fraction=1 / 3, schedule=schedule)
    assert [learning_rate(options, step, 6) for step in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("auto", Interval()),
        ("50 steps", Interval(steps=50)),
        ("1 step", Interval(steps=1)),
        ("90s", Interval(seconds=90.0)),
        ("5min", Interval(seconds=300.0)),
        ("1.5h", Interval(seconds=5400.0)),
    ],
)
def test_intervals_parse_and_survive_json(text, interval):
    options = CheckpointOptions(interval=text)
    assert options.interval == interval
    assert CheckpointOptions.model_validate_json(options.model_dump_json()) == options


@pytest.mark.parametrize("text", ["0 steps", "1.5 steps", "soon", "5 parsecs", "-3s", 50, None])
def test_other_intervals_are_refused(text):
    with pytest.raises(ValidationError, match="interval"):
        CheckpointOptions(interval=text)


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 3, "num_steps": 10},
        {"epochs": 0},
        {"num_steps": 0},
        {"global_batch": 0},
        {"micro_batch": 0},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"warmup_fraction": 1.5},
        {"schedule": "polynomial"},
        {"precision": "fp16"},
        {"seed": -1},
        {"weight_decay": -0.1},
        {"max_grad_norm": 0},
        {"learning_rat": 1e-5},
    ],
)
def test_impossible_train_options_are_refused(values):
    with pytest.raises(ValidationError):
        TrainOptions(**values)


def test_epochs_are_whole_passes_and_default_to_three():
    assert TrainOptions().epochs == 3
    assert resolve_num_steps(TrainOptions(global_batch=4), num_sequences=10) == 8
    assert resolve_num_steps(TrainOptions(num_steps=7), num_sequences=10) == 7


def config(tmp_path):
    return TrainConfig(
        run="r",
        attempt=1,
        store=f"file://{tmp_path}",
        inputs_dir=tmp_path,
        num_steps=6,
        model=ModelOptions(base="m"),
        train=TrainOptions(num_steps=6),
        spool_dir=tmp_path,
        notice_file=tmp_path / "notice.json",
    )


def test_a_configuration_survives_its_file_and_unknown_keys_are_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(config(tmp_path).model_dump_json())
    assert load_config(path) == config(tmp_path)
    path.write_text(config(tmp_path).model_dump_json().replace('"run"', '"rum"'))
    with pytest.raises(ConfigInvalid, match=r"rum|run"):
        load_config(path)


def test_a_newer_configuration_is_refused(tmp_path):
    path = tmp_path / "config.json"
    text = config(tmp_path).model_dump_json().replace('"schema_version":1', '"schema_version":2')
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match="schema_version"):
        load_config(path)


def resumed(step):
    return Resumed(at=NOON, step=step, manifest=None, num_bytes=0, seconds=0.5)


def test_only_complete_lines_are_read(tmp_path):
    spool = Spool(spool_path(tmp_path))
    spool.append(resumed(1))
    records, offset = read_records(spool_path(tmp_path), 0)
    assert records == [resumed(1)]
    line = resumed(2).model_dump_json().encode()
    with spool_path(tmp_path).open("ab") as file:
        file.write(line[:20])
    assert read_records(spool_path(tmp_path), offset) == ([], offset)
    with spool_path(tmp_path).open("ab") as file:
        file.write(line[20:] + b"\n")
    assert read_records(spool_path(tmp_path), offset)[0] == [resumed(2)]


def test_a_torn_line_of_a_dead_writer_is_dropped(tmp_path):
    Spool(spool_path(tmp_path)).append(resumed(1))
    with spool_path(tmp_path).open("ab") as file:
        file.write(b'{"kind": "ste')
    Spool(spool_path(tmp_path)).append(resumed(2))
    assert read_records(spool_path(tmp_path), 0)[0] == [resumed(1), resumed(2)]


def test_records_that_do_not_parse_are_an_error(tmp_path):
    spool_path(tmp_path).write_text('{"kind": "unheard of"}\n')
    with pytest.raises(SpoolInvalid):
        read_records(spool_path(tmp_path), 0)


def step(loss):
    return Step(
        at=NOON,
        step=12,
        started_at=NOON - timedelta(seconds=1),
        seconds=1.0,
        loss=loss,
        grad_norm=1.0,
        learning_rate=1.9e-5,
        num_tokens=3200,
        num_trained_tokens=9,
    )


@given(loss=st.floats(allow_nan=False, allow_infinity=False))
def test_losses_keep_their_bits(loss):
    assert Step.model_validate_json(step(loss).model_dump_json()).loss.hex() == loss.hex()


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(loss):
    with pytest.raises(ValidationError):
        step(loss)


def test_the_step_line_has_the_fixed_order():
    line = "step 12/40 loss 5.123 lr 1.9e-05 3,200 tok/s eta 1m10s"
    assert step_line(step(5.123), 40, 70.0) == line


def test_waiting_for_the_upload_ends_with_it_or_with_the_timeout(tmp_path):
    spool = Spool(spool_path(tmp_path))
    assert not spool.wait_uploaded(0.0)
    write_uploaded(tmp_path, 10_000)
    assert spool.wait_uploaded(60.0)


def test_outcomes_and_notices_are_read_as_written(tmp_path):
    outcome = Outcome(outcome=OutcomeKind.SAVED, step=3)
    write_outcome(tmp_path, 0, outcome)
    assert outcome_path(tmp_path, 0).name == "outcome-00000.json"
    assert (read_outcome(tmp_path, 0), read_outcome(tmp_path, 1)) == (outcome, None)
    assert read_notice(tmp_path / "notice.json") is None
    write_notice(tmp_path / "notice.json", Notice(deadline_at=NOON))
    assert read_notice(Path(tmp_path / "notice.json")) == Notice(deadline_at=NOON)


def test_what_others_import_loads_neither_torch_nor_transformers():
    modules = "train.config, train.spool, train.report, train.data.prepare"
    heavy = "{'torch', 'transformers'} & set(sys.modules)"
    code = f"import sys, {modules}; sys.exit(bool({heavy}))"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)
