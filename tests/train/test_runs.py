"""Whole training attempts in real processes: exact resume, preemption, fencing, lost owners.

Rank processes are started as on a node. Tests follow a run through its spool, and hold it where
they want it: rank 0 waits before each commit until the spool counts as uploaded.
"""

import re
import shutil
import subprocess
import time
from datetime import timedelta

import psutil
import pytest

from checkpoints.fence import read_head, rewind
from checkpoints.inspect import compare, read_manifest
from tests.fault_record import record_fault
from tests.train.attempts import (
    NUM_STEPS,
    OPTIONS,
    now,
    running,
    without_dropout,
)
from train.config import (
    ActivationCheckpointing,
)
from train.spool import (
    Notice,
    OutcomeKind,
    Risk,
    read_outcome,
    risk_path,
    spool_path,
    write_notice,
    write_risk,
    write_uploaded,
)


def test_an_uninterrupted_run_is_done_and_evaluated(straight_run):
    assert [o.outcome for o in straight_run.outcomes()] == [OutcomeKind.DONE] * 2
    assert sorted(straight_run.step_values()) == list(range(1, NUM_STEPS + 1))
    assert [commit.step for commit in straight_run.records("commit")] == [2, 4, 6]
    assert [record.step for record in straight_run.records("evaluated")] == [6]
    phases = [phase.name.value for phase in straight_run.records("phase")]
    assert (phases[:2], phases[-1]) == (["startup", "restore"], "evaluate")
    assert set(phases[2:-1]) == {"checkpoint"}  # the last save at least: training waits for it
    losses = [loss for loss, _, _ in straight_run.step_values().values()]
    assert losses[-1] < losses[0]


def test_killed_noticed_and_resumed_twice_it_ends_with_the_same_bits(straight_run, new_run):
    expected = straight_run.step_values()

    new_run.start()
    new_run.wait_until(lambda: len(new_run.records("step")) >= 3 and new_run.records("commit"))
    new_run.kill()
    assert new_run.outcomes() == [None, None]
    first = new_run.step_values()
    committed = read_head(new_run.store)[0].step

    new_run.start()
    new_run.wait_until(lambda: len(new_run.records("step")) >= 1)
    write_notice(new_run.notice_file, Notice(deadline_at=now() + timedelta(minutes=2)))
    assert new_run.wait() == [0, 0], new_run.log.read_text()
    (resumed,) = new_run.records("resumed")
    assert resumed.step == committed
    second = new_run.step_values()
    outcomes = new_run.outcomes()
    assert [o.outcome for o in outcomes] == [OutcomeKind.SAVED] * 2
    # Saved where it stopped, which is between two regular saves.
    assert [o.step for o in outcomes] == [max(second)] * 2
    assert max(second) < NUM_STEPS
    assert read_head(new_run.store)[0].step == max(second)

    new_run.notice_file.unlink()
    new_run.start(torchrun=True)
    assert new_run.wait() == [0], new_run.log.read_text()
    third = new_run.step_values()

    replayed = set(first) & set(second)
    assert replayed == {step for step in first if step > committed}
    for attempt in (first, second, third):
        assert attempt == {step: expected[step] for step in attempt}
    different = compare(
        straight_run.store,
        straight_run.head_manifest(),
        new_run.store,
        new_run.head_manifest(),
        ignore=lambda name: False,
    )
    assert different == []
    assert straight_run.records("evaluated")[0].loss == new_run.records("evaluated")[0].loss


def test_in_another_region_the_checkpoint_is_moved_once_and_nothing_else_changes(
    straight_run, new_run
):
    expected = straight_run.step_values()
    near = (new_run.folder / "near").as_uri()
    shutil.copytree(straight_run.folder / "run", new_run.folder / "run")
    earlier = read_manifest(new_run.store, new_run.head_manifest().parent)
    rewind_to(new_run, earlier)

    new_run.start(objects_store=near)
    new_run.wait_until(lambda: new_run.records("commit"))
    new_run.kill()
    (resumed,) = new_run.records("resumed")
    assert (resumed.step, resumed.store) == (earlier.step, None)
    moved = new_run.records("commit")[0]
    assert (moved.step, moved.store) == (earlier.step, near)

    new_run.start(objects_store=near)
    assert new_run.wait() == [0, 0], new_run.log.read_text()
    (resumed,) = new_run.records("resumed")
    assert resumed.store == near
    steps = [record.step for record in new_run.records("commit")]
    assert steps == [NUM_STEPS]  # not moved again
    assert new_run.step_values() == {step: expected[step] for step in new_run.step_values()}
    manifest = new_run.head_manifest()
    assert manifest.store == near
    different = compare(
        straight_run.store,
        straight_run.head_manifest(),
        new_run.store,
        manifest,
        ignore=lambda name: False,
    )
    assert different == []


@pytest.mark.xdist_group("resumed")
@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("weights", r"model\..*"),
        ("first moments", r"optimizer\..*\.exp_avg"),
        ("second moments", r"optimizer\..*\.exp_avg_sq"),
        ("update counts", r"optimizer\..*\.step"),
        ("random generators", r"rng\.cpu\.0000[01]"),
    ],
)
def test_a_resumed_attempt_has_each_tensor_as_it_was_saved(straight_run, resumed_run, part, names):
    saved, resumed = resumed_run
    wanted = {name for name in saved.tensors if re.fullmatch(names, name)}
    assert len(wanted) >= 2, part
    different = compare(
        straight_run.store,
        saved,
        straight_run.store,
        resumed,
        ignore=lambda name: name not in wanted,
    )
    assert different == [], part


@pytest.mark.xdist_group("resumed")
def test_a_resumed_attempt_stands_where_the_saved_one_stood(resumed_run):
    saved, resumed = resumed_run
    assert resumed.tensors.keys() == saved.tensors.keys()
    for name in ("step", "batch", "num_tokens", "mean_loss", "num_losses", "seed"):
        assert resumed.state[name] == saved.state[name] is not None, name
    assert saved.state["batch"] == saved.step


@pytest.fixture(scope="session")
def resumed_run(straight_run, tmp_path_factory, inputs_dir):
    """Return an earlier checkpoint, and what an attempt that resumed from it saved at once."""
    with running(tmp_path_factory.mktemp("resumed"), inputs_dir) as run:
        shutil.copytree(straight_run.folder / "run", run.folder / "run")
        saved = read_manifest(run.store, run.head_manifest().parent)
        rewind_to(run, saved)
        run.start(objects_store=(run.folder / "near").as_uri())
        run.wait_until(lambda: run.records("commit"))
        run.kill()
        resumed = read_manifest(run.store, run.records("commit")[0].manifest)
    assert resumed.step == saved.step
    return saved, resumed


def rewind_to(run, manifest):
    claim = run.claim()
    rewind(run.store, run="test", attempt=claim.attempt, to=manifest)


def test_world_size_and_micro_batch_do_not_change_the_numbers(tmp_path, inputs_dir):
    inputs = without_dropout(inputs_dir, tmp_path)
    with running(tmp_path / "two", inputs) as two, running(tmp_path / "one", inputs) as one:
        # 15 samples: shares of 8 and 7, so that rank 1's last micro-batch is empty.
        two.start(world_size=2, micro_batch=7)
        one.start(world_size=1, micro_batch=4)
        for run in (two, one):
            run.wait_until(lambda run=run: run.records("commit"))
        for step in (1, 2):
            assert two.step_values()[step] == pytest.approx(one.step_values()[step], rel=1e-5)


def test_weights_from_files_and_recomputed_activations_give_the_same_bits(straight_run, new_run):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = new_run.folder / "with-weights"
    torch.manual_seed(OPTIONS.seed)
    config = AutoConfig.from_pretrained(new_run.inputs_dir)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for path in new_run.inputs_dir.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert (folder / "model.safetensors").exists()

    new_run.inputs_dir = folder
    new_run.start(activation_checkpointing=ActivationCheckpointing.FULL)
    new_run.wait_until(lambda: len(new_run.records("step")) >= 2)
    values = new_run.step_values()
    assert values == {step: straight_run.step_values()[step] for step in values}


def test_a_fenced_attempt_commits_nothing_and_says_so_on_every_rank(new_run):
    new_run.start(flush_timeout_s=60.0)
    new_run.wait_until(lambda: new_run.records("flush"))
    new_run.claim()
    write_uploaded(new_run.spool_dir, 1 << 30)
    assert new_run.wait() == [1, 1]
    assert [o.outcome for o in new_run.outcomes()] == [OutcomeKind.FENCED] * 2
    assert read_head(new_run.store)[0].manifest is None


def test_a_zombie_that_outlives_a_recovery_changes_nothing_and_says_that_it_is_fenced(
    straight_run, new_run
):
    new_run.start()
    new_run.wait_until(lambda: new_run.records("commit"))
    zombie = [psutil.Process(process.pid) for process in new_run.processes]
    zombie += [child for process in zombie for child in process.children()]
    assert len(zombie) > len(new_run.processes)  # its uploader too
    zombie_spool, zombie_processes = new_run.spool_dir, new_run.processes
    for process in zombie:
        process.suspend()
    assert new_run.outcomes() == [None, None]  # it had more to do

    new_run.start()
    assert new_run.wait() == [0, 0], new_run.log.read_text()
    before = read_head(new_run.store)
    assert before[0].step == NUM_STEPS

    for process in zombie:
        process.resume()
    assert [process.wait(60) for process in zombie_processes] == [1, 1]
    outcomes = [read_outcome(zombie_spool, rank) for rank in range(2)]
    assert [outcome.outcome for outcome in outcomes] == [OutcomeKind.FENCED] * 2
    assert read_head(new_run.store) == before
    lost = before[0].step - read_head(new_run.store)[0].step
    what = "an attempt that stood still while another finished the run"
    record_fault("F8", what, injected=len(zombie_processes), committed_steps_lost=lost)
    different = compare(
        straight_run.store,
        straight_run.head_manifest(),
        new_run.store,
        new_run.head_manifest(),
        ignore=lambda name: False,
    )
    assert different == []


def overwrite_end(path, other):
    path.write_bytes(path.read_bytes()[:-100] + b"x" * 100)


def cut_off_end(path, other):
    path.write_bytes(path.read_bytes()[:-100])


def remove(path, other):
    path.unlink()


def exchange(path, other):
    """Put the same file of the checkpoint before in its place: whole, and a shard as large."""
    if path.suffix == ".safetensors":
        assert other.stat().st_size == path.stat().st_size
    shutil.copy(other, path)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("harmed", "harm"),
    [
        ("object", overwrite_end),
        ("manifest", overwrite_end),
        pytest.param("object", cut_off_end, marks=SLOW),
        pytest.param("object", remove, marks=SLOW),
        pytest.param("object", exchange, marks=SLOW),
        pytest.param("manifest", remove, marks=SLOW),
        pytest.param("manifest", exchange, marks=SLOW),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_resumed(
    straight_run, new_run, harmed, harm
):
    shutil.copytree(straight_run.folder / "run", new_run.folder / "run")
    head, _ = read_head(new_run.store)
    assert (head.step, head.parent) == (6, straight_run.head_manifest().parent)
    damaged, before = head.manifest, head.parent
    if harmed == "object":
        damaged = new_run.head_manifest().objects[1].key
        before = read_manifest(new_run.store, head.parent).objects[1].key
    harm(new_run.folder / "run" / damaged, new_run.folder / "run" / before)

    new_run.start()
    assert new_run.wait() == [0, 0], new_run.log.read_text()
    (record,) = new_run.records("damaged")
    assert record.manifest == head.manifest
    if harmed == "object":
        assert damaged in record.what
    (resumed,) = new_run.records("resumed")
    assert (resumed.step, resumed.manifest) == (4, head.parent)
    record_fault(
        "F3" if harmed == "object" else "F4",
        f"the last checkpoint's {harmed} is spoiled after its commit",
        injected=1,
        committed_steps_lost=read_manifest(straight_run.store, head.parent).step - resumed.step,
    )
    expected = straight_run.step_values()
    assert new_run.step_values() == {step: expected[step] for step in (5, 6)}
    assert new_run.head_manifest().parent == head.parent
    different = compare(
        straight_run.store,
        read_manifest(straight_run.store, straight_run.head_manifest().parent),
        new_run.store,
        read_manifest(new_run.store, head.parent),
        ignore=lambda name: False,
    )
    assert different == []


@pytest.mark.parametrize(
    "harm", [lambda path: path.unlink(), lambda path: path.write_text("{")], ids=["lost", "torn"]
)
def test_behind_a_manifest_that_is_gone_what_is_older_is_resumed(straight_run, new_run, harm):
    shutil.copytree(straight_run.folder / "run", new_run.folder / "run")
    last = new_run.head_manifest()
    (new_run.folder / "run" / last.objects[0].key).unlink()
    harm(new_run.folder / "run" / last.parent)  # step 4; step 2 is left
    new_run.start()
    new_run.wait_until(lambda: new_run.records("resumed"))
    damaged = [record.manifest for record in new_run.records("damaged")]
    assert damaged == [last.key, last.parent]
    (resumed,) = new_run.records("resumed")
    assert resumed.step == 2
    new_run.wait_until(lambda: len(new_run.records("step")) >= 2)
    values = new_run.step_values()
    assert values == {step: straight_run.step_values()[step] for step in values}


@SLOW
def test_manifests_of_a_newer_version_and_of_another_run_are_named_and_passed_over(
    straight_run, new_run
):
    shutil.copytree(straight_run.folder / "run", new_run.folder / "run")
    last = new_run.head_manifest()
    newer = last.model_copy(update={"schema_version": 99})
    others = read_manifest(new_run.store, last.parent).model_copy(update={"run": "another"})
    for manifest in (newer, others):  # whole, with a checksum of their own
        (new_run.folder / "run" / manifest.key).write_bytes(manifest.to_json())
    new_run.start()
    new_run.wait_until(lambda: new_run.records("resumed"))
    damaged = new_run.records("damaged")
    assert [record.manifest for record in damaged] == [newer.key, others.key]
    assert "99" in damaged[0].what
    assert "of run another" in damaged[1].what
    (resumed,) = new_run.records("resumed")
    lost = 2 - resumed.step  # of what is whole
    assert lost == 0
    record_fault(
        "F4",
        "manifests of a newer version and of another run",
        injected=len(damaged),
        committed_steps_lost=lost,
    )


def test_when_every_checkpoint_is_damaged_training_begins_again(straight_run, new_run):
    shutil.copytree(straight_run.folder / "run", new_run.folder / "run")
    for path in (new_run.folder / "run" / "checkpoints").glob("*/rank-00000-*"):
        path.unlink()
    new_run.start()
    assert new_run.wait() == [0, 0], new_run.log.read_text()
    assert len(new_run.records("damaged")) == 3
    assert new_run.step_values() == straight_run.step_values()


def test_without_time_for_a_save_a_notice_stops_without_one(new_run):
    new_run.start(world_size=1, flush_timeout_s=60.0)
    # The save of step 4 waits for that of step 2, and that for the agent, whose turn is here.
    new_run.wait_until(lambda: len(new_run.records("step")) == 4 and new_run.records("flush"))
    write_notice(new_run.notice_file, Notice(deadline_at=now()))
    write_uploaded(new_run.spool_dir, spool_path(new_run.spool_dir).stat().st_size)
    assert new_run.wait() == [0]
    (outcome,) = new_run.outcomes(1)
    assert (outcome.outcome, outcome.step) == (OutcomeKind.SAVED, 2)


def test_notices_repeated_and_of_any_length_cost_one_save_at_most_also_where_nothing_comes(new_run):
    """Each attempt trains beyond the last commit and is told at once, several times; nobody comes.

    Nothing else saves: without a notice the attempt would lose all of its steps.
    """
    num_notices, resumed_at, lost = 0, [], 0
    for left_s in (120, 30, 5, 0):
        new_run.start(num_steps=1000, interval="1000 steps")
        before = read_head(new_run.store)[0].step if read_head(new_run.store) else 0
        new_run.wait_until(lambda: len(new_run.records("step")) >= 2)
        deadline_at = now() + timedelta(seconds=left_s)
        for _ in range(3):
            write_notice(new_run.notice_file, Notice(deadline_at=deadline_at))
        num_notices += 1
        assert new_run.wait() == [0, 0], new_run.log.read_text()
        after = read_head(new_run.store)
        saved = [record.step for record in new_run.records("commit")]
        assert len(saved) <= 1
        assert [one.outcome for one in new_run.outcomes()] == [OutcomeKind.SAVED] * 2
        resumed_at.append(after[0].step if after else 0)
        lost += max(0, before - resumed_at[-1])
        if left_s >= 30:
            assert saved == [max(new_run.step_values())]
        new_run.notice_file.unlink()
    assert lost == 0
    assert resumed_at[1] > resumed_at[0] > 0
    what = "notices of 120, 30, 5 and 0 s, each told three times, and nobody came"
    record_fault("F16", what, injected=num_notices, committed_steps_lost=lost)


def test_a_risk_costs_one_save_and_training_goes_on(new_run, straight_run):
    write_risk(risk_path(new_run.notice_file), Risk(noted_at=now()))
    new_run.start()
    assert new_run.wait() == [0, 0], new_run.log.read_text()
    saved = [record.step for record in new_run.records("commit")]
    assert saved == [1, 2, 4, 6]  # the first one is beside the interval
    assert new_run.step_values() == straight_run.step_values()


def test_ranks_end_with_their_owner(new_run):
    with subprocess.Popen(["sleep", "300"]) as owner:
        new_run.start(owner_pid=owner.pid)
        new_run.wait_until(new_run.spool_dir.exists)
        owner.kill()
        owner.wait()
    started_at = time.monotonic()
    assert new_run.wait(20) == [1, 1]
    assert time.monotonic() - started_at < 10


def test_a_model_that_cannot_be_built_is_a_failed_outcome_in_one_line(new_run, tmp_path):
    broken = without_dropout(new_run.inputs_dir, tmp_path)
    (broken / "config.json").write_text('{"model_type": "nothing-we-know"}')
    new_run.inputs_dir = broken
    new_run.start(world_size=1)
    assert new_run.wait() == [1]
    (outcome,) = new_run.outcomes(1)
    assert outcome.outcome is OutcomeKind.FAILED
    assert "nothing-we-know" in outcome.error
    assert "\n" not in outcome.error


def test_training_goes_on_after_a_save_that_failed(new_run):
    checkpoints = new_run.folder / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    # A file where the first checkpoint's folder would be.
    (checkpoints / "step-00000002.a001").touch()
    new_run.start(world_size=1, micro_batch=8)
    new_run.wait_until(lambda: new_run.records("commit"))
    assert [record.step for record in new_run.records("save_failed")] == [2]
    assert new_run.records("commit")[0].step == 4
