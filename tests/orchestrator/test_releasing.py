"""`orchestrate checkpoints export|apply-delta`: the card, casts, and deltas as others get them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file

from orchestrator.card.evaluation import evaluation_section
from orchestrator.card.sections import public_name
from orchestrator.ledger.facts import ModelEvaluated
from tests.released_run import make_released_run, make_weights


@pytest.fixture
def trained():
    return make_weights(1)


@pytest.fixture
def run(tmp_path, trained):
    return make_released_run((tmp_path / "store").as_uri(), tmp_path, trained)


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    write_base(folder, make_weights(0))
    return folder


def write_base(folder, weights, kind=np.float16):
    folder.mkdir()
    save_file(
        {name: values.astype(kind) for name, values in weights.items()},
        folder / "model.safetensors",
    )


def export(orchestrate, output, *options):
    code, _, err = orchestrate("checkpoints", "export", "demo", "--output", output, *options)
    assert code == 0, err
    return err


def test_the_weights_come_out_as_they_were_trained(orchestrate, run, trained, tmp_path):
    export(orchestrate, tmp_path / "model")
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert {name: values.tobytes() for name, values in found.items()} == {
        name: values.tobytes() for name, values in trained.items()
    }
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "x"


def test_a_cast_release_says_its_dtype(orchestrate, run, trained, tmp_path):
    export(orchestrate, tmp_path / "model", "--dtype", "float16")
    found = load_file(tmp_path / "model" / "model.safetensors")
    for name, values in trained.items():
        assert found[name].tobytes() == values.astype(np.float16).tobytes()
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config == {"model_type": "llama", "dtype": "float16"}


def test_the_card_parses_as_the_hub_reads_it(orchestrate, run, tmp_path):
    export(orchestrate, tmp_path / "model")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license == "unknown"
    assert card.data.base_model == "someone/base"
    assert card.data.base_model_relation == "finetune"
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert "delta" not in card.data.tags


def test_the_card_says_what_the_run_folder_knows(orchestrate, run, tmp_path):
    export(orchestrate, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    for said in (
        "step 10 of 10",
        "Trained on 2 conversations (3 samples, 24 tokens)",
        "1 conversations (1 samples, 8 tokens)",
        "How it was cleaned before is not recorded.",
        "| train.learning_rate | 2e-05 |",
        "| tokens in 10 recorded steps | 1,000 |",
        "| devices | a test's processor |",
        "2 attempts, 1 preemptions, on simulated nodes of one machine.",
        "1 steps were trained again after a preemption and compared with their first record: "
        "1 equal bit for bit.",
        "Loss per trained token: 2.9000 at step 1, 2.0000 at step 10.",
        "2.3000 after step 10",
        "(simulated: no such nodes were paid for)",
        "No judge has compared its answers",
        "Weights are F32.",
    ):
        assert said in card
    assert "/nowhere" not in card


def test_the_card_says_what_cleaning_dropped(orchestrate, run, tmp_path):
    report = {
        "schema_version": 1,
        "input_sha256": "ab" * 32,
        "options": {"rules": {"language": "en"}},
        "num_read": 90_000,
        "num_kept": 70_000,
        "num_dropped": 20_000,
        "num_changed": 5,
        "num_written": 70_000,
        "reasons": {"duplicate": 12_000, "other_language": 8_000},
        "dropped": [],
    }
    path = tmp_path / "clean.jsonl.report.json"
    path.write_text(json.dumps(report))
    export(orchestrate, tmp_path / "model", "--data-report", path)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.language == ["en"]
    assert "kept 70,000 of 90,000 conversations" in card.text
    assert "dropped 20,000 and changed 5: duplicate 12,000, other language 8,000." in card.text


def test_sources_are_named_without_where_they_lay():
    assert public_name("/home/me/models/llama-7b/") == "llama-7b"
    assert public_name("s3://my-bucket/data/sharegpt.json") == "sharegpt.json"
    assert public_name("huggyllama/llama-7b") == "huggyllama/llama-7b"
    assert public_name("https://me:secret@host/a.json?sig=secret") == "https://host/a.json"


def test_the_cards_evaluation_has_judge_interval_and_number_of_questions():
    result = ModelEvaluated(
        evaluation="against-base",
        step=10,
        judge="a|judge",
        questions="of MT-bench",
        num_questions=80,
        score=(3.5, 3.25, 3.75),
        baseline="base",
        baseline_score=None,
        wins=50,
        ties=12,
        losses=18,
        no_verdicts=0,
        win_rate=(0.7, 0.6, 0.8),
        usd=None,
    )
    last = evaluation_section([result]).splitlines()[-1]
    assert last == (
        "| against-base | 80, of MT-bench | a judge | 3.50 (3.25 to 3.75) | base | - "
        "| 70% (60% to 80%) |"
    )


def test_a_delta_becomes_the_release_byte_for_byte(orchestrate, run, base, tmp_path):
    export(orchestrate, tmp_path / "release", "--dtype", "float16")
    export(orchestrate, tmp_path / "delta", "--dtype", "float16", "--delta-from", base)
    card = ModelCard.load(tmp_path / "delta" / "README.md")
    assert "delta" in card.data.tags
    assert card.data.pipeline_tag is None
    assert "of no use without `someone/base`" in card.text
    code, _, err = orchestrate(
        *("checkpoints", "apply-delta", base, tmp_path / "delta"),
        *("--output", tmp_path / "restored"),
    )
    assert code == 0, err
    for path in (tmp_path / "release").iterdir():
        if path.name != "README.md":
            assert (tmp_path / "restored" / path.name).read_bytes() == path.read_bytes()
    assert left_over(tmp_path) == []


def test_a_delta_in_another_dtype_than_the_bases_says_what_to_add(orchestrate, run, base, tmp_path):
    code, _, err = orchestrate(
        *("checkpoints", "export", "demo", "--output", tmp_path / "delta", "--delta-from", base)
    )
    assert code == 2
    assert "embed.weight is F16 in" in err
    assert "--dtype float16" in err
    assert not (tmp_path / "delta").exists()
    assert left_over(tmp_path) == []


def test_another_base_is_refused_before_anything_is_written(orchestrate, run, base, tmp_path):
    export(orchestrate, tmp_path / "delta", "--dtype", "float16", "--delta-from", base)
    write_base(tmp_path / "other", make_weights(5))
    code, _, err = orchestrate(
        *("checkpoints", "apply-delta", tmp_path / "other", tmp_path / "delta"),
        *("--output", tmp_path / "restored"),
    )
    assert code == 2
    assert "is not the base of this delta: its embed.weight differs" in err
    assert "made from someone/base" in err
    assert not (tmp_path / "restored").exists()


def test_a_damaged_delta_leaves_nothing(orchestrate, run, base, tmp_path):
    export(orchestrate, tmp_path / "delta", "--dtype", "float16", "--delta-from", base)
    path = tmp_path / "delta" / "delta.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, _, err = orchestrate(
        *("checkpoints", "apply-delta", base, tmp_path / "delta"),
        *("--output", tmp_path / "restored"),
    )
    assert code == 2
    assert "norm.weight does not become what was released" in err
    assert not (tmp_path / "restored").exists()
    assert left_over(tmp_path) == []


def test_a_folder_with_a_readme_of_its_own_keeps_it(orchestrate, run, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("mine")
    code, _, err = orchestrate("checkpoints", "export", "demo", "--output", tmp_path / "model")
    assert code == 2
    assert "has a README.md already" in err
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["README.md"]
    assert (tmp_path / "model" / "README.md").read_text() == "mine"


def test_a_release_that_was_killed_is_no_model(orchestrate, run, base, tmp_path):
    export(orchestrate, tmp_path / "delta", "--dtype", "float16", "--delta-from", base)
    code = f"""
import os, signal
from pathlib import Path
from orchestrator.releasing import restore_release

def kill_where_weights_are_written(num_bytes):
    if list(Path({str(tmp_path)!r}).glob(".restored-*/model/model.safetensors")):
        os.kill(os.getpid(), signal.SIGKILL)

base, delta, output = (Path({str(tmp_path)!r}, name) for name in ("base", "delta", "restored"))
restore_release(base, delta, output, kill_where_weights_are_written)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(left_over(tmp_path)) == 1
    assert not (tmp_path / "restored").exists()


def left_over(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]
