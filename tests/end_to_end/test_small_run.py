"""The whole path on a small run: real ranks, real SIGKILLs, exact resume, a bill that adds up."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from tests.end_to_end.decisions import replay
from tests.end_to_end.wandb_runs import scan

# Enough saves after the first loss for the second one to find one under way on a busy machine.
TRAIN = {"num_steps": 24, "global_batch": 8, "micro_batch": 4, "precision": "fp32"}
PREEMPTIONS = [{"after_step": 6}, {"during": "checkpoint"}]


@pytest.mark.timeout(240)
def test_preempted_run_equals_the_undisturbed_one_bit_for_bit(workplace):
    east = workplace.folder / "east"
    rough = workplace.write_spec(
        "rough",
        train=TRAIN,
        local={"ranks": 2, "time_scale": 60, "preemptions": PREEMPTIONS},
        tracking={"wandb": {"project": "tests"}},
        # The region that is tried after the first one is lost.
        checkpoints={"interval": "4 steps", "stores": {"aws/us-east-1": str(east)}},
    )
    calm = workplace.write_spec("calm", train=TRAIN)
    for spec in (rough, calm):
        done = workplace.run("launch", spec, "--yes")
        assert done.returncode == 0, done.stderr
    workplace.wait_until_quiet()

    status = workplace.document("status", "rough")
    assert status["state"] == "SUCCEEDED"
    assert status["last_commit_step"] == status["num_steps"] == 24
    assert status["num_preemptions"] == 2
    assert status["replay"]["steps"] > 0
    assert status["replay"]["max_abs_diff"] == 0
    details = [attempt["detail"] for attempt in status["attempts"]]
    assert details == ["script 1 of 2 after step 6", "script 2 of 2 during a checkpoint", None]
    regions = [(attempt["cloud"], attempt["region"]) for attempt in status["attempts"]]
    assert regions[0] != regions[1] != regions[2]
    assert regions[1] == ("aws", "us-east-1")
    assert list((east / "rough").rglob("*.json")) == []
    assert workplace.run("checkpoints", "verify", "rough", "--all").returncode == 0
    decisions = replay((workplace.folder / "store" / "rough").as_uri())
    assert len(decisions) >= 4  # three launches and a stop
    assert all(is_equal for _, _, is_equal in decisions), decisions

    verdict = workplace.document("checkpoints", "verify", "rough", "--against", "calm")
    assert verdict["problems"] == verdict["against"]["differing"] == []
    assert verdict["against"]["num_tensors"] > 10
    # The last checkpoint's: names sort by step.
    shard = max((workplace.folder / "store" / "calm").rglob("rank-00001*.safetensors"))
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    for against in ([], ["--against", "rough"]):
        refused = workplace.run("checkpoints", "verify", "calm", *against)
        assert refused.returncode == 1
        assert "Traceback" not in refused.stderr

    cost = json.loads(workplace.run("cost", "rough", "--json").stdout, parse_float=Decimal)
    assert sum(cost["parts"].values()) == cost["total_usd"] > 0
    assert sum(cost["seconds"].values()) == cost["wall_seconds"]
    assert cost["seconds"]["lost_work"] > 0
    assert cost["simulated"] is True

    logs = workplace.run("logs", "rough").stdout
    assert "--- attempt 3 ---" in logs
    assert "step 24/24" in logs
    # Killed attempts leave no file, and need none.
    [offline] = (workplace.folder / "store" / "rough" / "logs").rglob("*.wandb")
    rows = scan(offline).rows
    assert [row["train/step"] for row in rows] == list(range(1, 25))
    assert [row["attempt/number"] for row in rows] == sorted(row["attempt/number"] for row in rows)
    replays = [row for row in rows if "replay/steps" in row]
    assert replays[-1]["replay/steps"] == status["replay"]["steps"]
    assert {row["replay/max_abs_diff"] for row in replays} == {0}
    assert all(row["recovery/seconds"] > 0 and row["recovery/usd"] > 0 for row in replays)
    assert 0 < rows[-1]["cost/usd_total"] <= status["usd"]
    assert rows[-1]["goodput/seconds_lost_work"] == cost["seconds"]["lost_work"]

    model = workplace.folder / "model"
    assert workplace.run("checkpoints", "export", "rough", "--output", model).returncode == 0
    names = {path.name for path in model.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_failing_training_exits_5_with_the_reason_and_resumes_nothing(workplace):
    spec = workplace.write_spec(model={"base": str(_broken_model(workplace)), "max_length": 384})
    done = workplace.run("launch", spec, "--yes")
    assert done.returncode == 5, done.stderr
    assert "failed" in done.stderr
    assert "Traceback" not in done.stderr
    status = workplace.document("status", "small")
    assert status["state"] == "FAILED"
    assert [attempt["end_reason"] for attempt in status["attempts"]] == ["training_failed"] * 3
    workplace.wait_until_quiet()


def _broken_model(workplace):
    """A model folder that can be prepared, but whose attention heads do not divide its width."""
    folder = workplace.folder / "broken"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": 33,
        "num_attention_heads": 8,
        "num_key_value_heads": 5,
        "num_hidden_layers": 1,
        "intermediate_size": 64,
        "vocab_size": 1024,
        "max_position_embeddings": 128,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
