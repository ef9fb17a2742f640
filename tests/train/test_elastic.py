"""Whole attempts whose ranks change: their number, their launcher, their layout, their options."""

import json
import signal
from datetime import timedelta

import pytest

from tests.fault_record import record_fault
from tests.train.attempts import MODEL, NUM_STEPS, OPTIONS, now, running, without_dropout
from train.data.order import batch_sequences
from train.data.prepare import prepare
from train.spool import Notice, OutcomeKind, write_notice

CLOSE = {"rel": 1e-5}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Thirty conversations, one a sequence: sequence n is conversation n."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(
        json.dumps({**MODEL, "attention_dropout": 0.0, "tie_word_embeddings": False})
    )
    return prepared(folder, folder / "prepared", poisoned=())


def prepared(model, output, *, poisoned):
    items = [
        {
            "id": f"c{n}",
            "conversations": [
                {"from": "human", "value": f"Count to {n}{' @@' * (n in poisoned)}"},
                {"from": "gpt", "value": ", ".join(str(k) for k in range(1, n + 3))},
            ],
        }
        for n in range(30)
    ]
    train = output.with_suffix(".json")
    train.write_text(json.dumps(items))
    prepare(
        model=model,
        train=train,
        max_length=200,
        eval_fraction=0.0,
        seed=0,
        output=output,
        packing=False,
    )
    return output


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_on_1_2_and_4_ranks_with_kills_between_the_steps_are_those_of_one_run(inputs, tmp_path):
    with running(tmp_path / "straight", inputs) as straight:
        straight.start(world_size=2)
        assert straight.wait() == [0, 0]
        expected = straight.step_values()
        tokens = {record.step: record.num_tokens for record in straight.records("step")}
    with running(tmp_path / "elastic", inputs) as run:
        seen = {}
        for world_size, step in ((1, 2), (4, 4), (2, NUM_STEPS)):
            run.start(world_size=world_size)
            run.wait_until(
                lambda step=step: any(one.step >= step for one in run.records("commit")), 180
            )
            run.kill()
            for record in run.records("step"):
                assert record.num_tokens == tokens[record.step]
                values = (record.loss, record.grad_norm, record.learning_rate)
                assert values == pytest.approx(expected[record.step], **CLOSE)
                seen[record.step] = seen.get(record.step, 0) + 1
        assert sorted(seen) == list(range(1, NUM_STEPS + 1))
        assert run.head_manifest().state["batch"] == NUM_STEPS


@pytest.mark.slow
def test_replicas_over_nodes_and_accelerate_s_launcher_change_no_number(inputs, tmp_path):
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", "0"]
    values = []
    for name, options in (
        ("one-node", {"world_size": 2}),
        ("two-nodes", {"world_size": 2, "nodes": 2}),
        ("accelerate", {"world_size": 2, "launcher": launcher}),
    ):
        with running(tmp_path / name, inputs) as run:
            run.start(num_steps=2, **options)
            assert set(run.wait(120)) == {0}, run.log.read_text()
            values.append(run.step_values())
    one_node, two_nodes, accelerate = values
    assert len(one_node) == 2
    for step, expected in one_node.items():
        assert two_nodes[step] == pytest.approx(expected, **CLOSE)
    assert accelerate == one_node


@pytest.mark.slow
def test_compiled_layers_give_the_same_numbers(inputs, tmp_path):
    values = []
    for name in ("plain", "compile"):
        with running(tmp_path / name, inputs) as run:
            run.start(world_size=1, num_steps=2, global_batch=4, compile=name == "compile")
            assert run.wait(200) == [0], run.log.read_text()
            values.append(run.step_values())
    plain, compiled = values
    for step, expected in plain.items():
        assert compiled[step] == pytest.approx(expected, rel=1e-4)


def poison(inputs, folder, poisoned):
    """Return inputs by whose (finite) weights a conversation with an @ has a loss of NaN."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(inputs)
    # Its layer norms subtract the mean, and the difference of such numbers overflows.
    config = AutoConfig.for_model(
        "gpt_neox",
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        vocab_size=len(tokenizer),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    token = tokenizer(" @@", add_special_tokens=False)["input_ids"][-1]
    with torch.no_grad():
        model.get_input_embeddings().weight[token, 0::2] = 3e38
        model.get_input_embeddings().weight[token, 1::2] = -3e38
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return prepared(folder, folder / "prepared", poisoned=poisoned)


def test_bad_batches_are_left_out_and_several_in_a_row_roll_back(inputs, tmp_path):
    # Of four sequences each; 3, 4 and 5 in a row, and none before them.
    batches = [batch_sequences(OPTIONS.seed, number, 2, 30) for number in range(12)]
    poisoned = [batches[number][0] for number in (3, 4, 5, 8)]
    poisoned_inputs = poison(inputs, tmp_path / "weights", poisoned)
    with running(tmp_path / "run", poisoned_inputs) as run:
        run.start(world_size=2, global_batch=2, roll_back_batches=1)
        assert run.wait() == [0, 0], run.log.read_text()
        left_out = [(record.step, record.batch) for record in run.records("left_out")]
        assert left_out == [(4, 3), (4, 4), (4, 5), (5, 8)]
        (rolled_back,) = run.records("rolled_back")
        assert (rolled_back.step, rolled_back.to_step) == (3, 2)
        trained = [(record.step, record.batch) for record in run.records("step")]
        assert trained == [(1, 0), (2, 1), (3, 2), (3, 6), (4, 7), (5, 9), (6, 10)]
        assert run.head_manifest().state["batch"] == 11
        record_fault("F14", "batches whose gradient is not finite", injected=len(left_out))


def test_a_roll_back_does_not_depend_on_when_the_run_was_saved(inputs, tmp_path):
    batches = [batch_sequences(OPTIONS.seed, number, 1, 30) for number in range(30)]
    poisoned = [batches[number][0] for number in (12, 13, 14)]
    poisoned_inputs = poison(inputs, tmp_path / "weights", poisoned)
    options = {"world_size": 1, "num_steps": 20, "global_batch": 1, "roll_back_batches": 3}
    # Steps 10 to 12 are taken back, and 9 to 11 are left out with the bad ones.
    expected = [(step, step - 1 + 6 * (step > 9)) for step in range(1, 21)]
    histories = []

    def finish(run, interval):
        run.start(interval=interval, **options)
        assert run.wait() == [0], run.log.read_text()
        (rolled_back,) = run.records("rolled_back")
        assert run.head_manifest().state["skipped"] == [[9, 15]]
        return rolled_back

    def values(run):
        return {(one.step, one.batch): (one.loss, one.grad_norm) for one in run.records("step")}

    for interval, to_step in (("9 steps", 9), ("4 steps", 8)):
        with running(tmp_path / interval.replace(" ", "-"), poisoned_inputs) as run:
            rolled_back = finish(run, interval)
            assert (rolled_back.step, rolled_back.to_step) == (12, to_step)
            histories.append(values(run))
    with running(tmp_path / "resumed", poisoned_inputs) as run:
        run.start(interval="9 steps", **options)
        run.wait_until(lambda: any(one.batch >= 15 for one in run.records("step")))
        # Step 18 would be saved next: the next attempt gets there its own way.
        run.kill()
        before = values(run)
        finish(run, "4 steps")
        histories.append(before | values(run))
        assert before.items() <= histories[-1].items()
    for history in histories:
        assert {key: history[key] for key in expected} == {
            key: histories[0][key] for key in expected
        }


def test_a_roll_back_without_an_older_checkpoint_begins_again(inputs, tmp_path):
    batches = [batch_sequences(OPTIONS.seed, number, 1, 30) for number in range(30)]
    poisoned_inputs = poison(inputs, tmp_path / "weights", [batches[n][0] for n in (5, 6, 7)])
    histories = []
    for interval in ("2 steps", "9 steps"):  # saved twice before, and not at all
        with running(tmp_path / interval.replace(" ", "-"), poisoned_inputs) as run:
            run.start(interval=interval, world_size=1, num_steps=10, global_batch=1)
            assert run.wait() == [0], run.log.read_text()
            (rolled_back,) = run.records("rolled_back")
            assert (rolled_back.step, rolled_back.to_step) == (5, 0)
            steps = [one for one in run.records("step") if one.batch >= 8]
            histories.append([(one.step, one.batch, one.loss, one.grad_norm) for one in steps])
    assert [step[:2] for step in histories[0]] == [(step, step + 7) for step in range(1, 11)]
    assert histories[0] == histories[1]


def test_a_checkpoint_that_is_too_young_does_not_stand_for_the_beginning(inputs, tmp_path):
    batches = [batch_sequences(OPTIONS.seed, number, 1, 30) for number in range(30)]
    poisoned_inputs = poison(inputs, tmp_path / "weights", [batches[n][0] for n in (12, 13, 14)])
    losses = []
    # Saved at 4 and 8, only at 9, and not at all: 7 is the first batch that is left out.
    for interval, to_step in (("4 steps", 4), ("9 steps", 0), ("1h", 0)):
        with running(tmp_path / interval.replace(" ", "-"), poisoned_inputs) as run:
            options = {"world_size": 1, "num_steps": 14, "global_batch": 1, "roll_back_batches": 5}
            run.start(interval=interval, **options)
            assert run.wait() == [0], run.log.read_text()
            assert [one.to_step for one in run.records("rolled_back")] == [to_step]
            assert run.head_manifest().state["skipped"] == [[7, 15]]
            losses.append({one.step: one.loss for one in run.records("step")})
    assert losses[0] == losses[1] == losses[2]


def test_a_damaged_checkpoint_is_named_and_the_roll_back_goes_further(inputs, tmp_path):
    batches = [batch_sequences(OPTIONS.seed, number, 2, 30) for number in range(15)]
    poisoned_inputs = poison(inputs, tmp_path / "weights", [batches[n][0] for n in (10, 11, 12)])
    with running(tmp_path / "run", poisoned_inputs) as run:
        run.start(world_size=2, num_steps=12, global_batch=2, roll_back_batches=5)
        run.wait_until(lambda: any(one.step == 4 for one in run.records("commit")))
        for process in run.processes:
            process.send_signal(signal.SIGSTOP)
        # What the second rank will read, and the first not.
        (shard,) = (run.folder / "run" / "checkpoints").glob("step-00000004*/rank-00001*")
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        for process in run.processes:
            process.send_signal(signal.SIGCONT)
        assert run.wait() == [0, 0], run.log.read_text()
        (damaged,) = run.records("damaged")
        assert "step-00000004" in damaged.manifest
        (rolled_back,) = run.records("rolled_back")
        assert (rolled_back.step, rolled_back.to_step) == (10, 2)
        assert run.head_manifest().state["skipped"] == [[5, 13]]


def test_what_stays_bad_ends_the_attempt_and_commits_nothing(inputs, tmp_path):
    poisoned_inputs = poison(inputs, tmp_path / "weights", range(30))
    with running(tmp_path / "run", poisoned_inputs) as run:
        run.start(world_size=1, global_batch=2)
        assert run.wait() == [1]
        (outcome,) = run.outcomes(1)
        assert outcome.outcome is OutcomeKind.FAILED
        assert "cannot be trained on" in outcome.error
        assert run.records("commit") == []
        assert [record.to_step for record in run.records("rolled_back")] == [0, 0]
        assert len(run.records("left_out")) == 9


def test_it_evaluates_as_often_as_it_is_told(inputs, tmp_path):
    folder = without_dropout(inputs, tmp_path)
    (folder / "eval.safetensors").write_bytes((folder / "train.safetensors").read_bytes())
    with running(tmp_path / "run", folder) as run:
        run.start(world_size=1, global_batch=4, eval_every=2)
        assert run.wait() == [0], run.log.read_text()
        evaluated = run.records("evaluated")
        assert [record.step for record in evaluated] == [0, 2, 4, 6]
        losses = [record.loss for record in evaluated]
        assert losses == sorted(losses, reverse=True)


def test_a_notice_cuts_an_evaluation_off_and_the_next_attempt_makes_up_for_it(inputs, tmp_path):
    folder = without_dropout(inputs, tmp_path)
    (folder / "eval.safetensors").write_bytes((folder / "train.safetensors").read_bytes())
    options = {"world_size": 1, "global_batch": 4, "eval_every": 2, "interval": "1h"}

    def notice():
        left = timedelta(seconds=60)
        write_notice(run.notice_file, Notice(deadline_at=now() + left))

    with running(tmp_path / "run", folder) as run:
        run.start(**options)
        run.wait_until(lambda: any(one.step == 2 for one in run.records("step")))
        notice()
        assert run.wait() == [0], run.log.read_text()
        (outcome,) = run.outcomes(1)
        assert (outcome.outcome, outcome.step) == (OutcomeKind.SAVED, 2)
        assert [one.step for one in run.records("evaluated")] == [0]
        run.notice_file.unlink()
        run.start(**options)
        # A notice while the last evaluation is made: all is saved, so it may well be finished.
        run.wait_until(lambda: any(one.step == NUM_STEPS for one in run.records("step")))
        notice()
        assert run.wait() == [0], run.log.read_text()
        (outcome,) = run.outcomes(1)
        assert outcome.outcome is OutcomeKind.DONE
        assert [one.step for one in run.records("evaluated")] == [2, 4, 6]
