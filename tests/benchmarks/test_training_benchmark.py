"""The training benchmarks measure what they say, and say so where they cannot."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.trainers.jobs import Figures, Variant
from benchmarks.trainers.summary import Row, check
from train.mfu import ModelSize, flops_per_token, mean_length, peak_flops

ROOT = Path(__file__).parents[2]
CONVERSATIONS = ROOT / "examples" / "conversations.json"


def run(module, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def figures(tokens_per_cpu_s):
    return Figures(
        tokens_per_cpu_s=tokens_per_cpu_s,
        tokens_per_s=1.0,
        peak_rss_mb=1.0,
        cpu_s=1.0,
        num_tokens=1,
        num_steps=1,
    )


def row(variant, *rates):
    return Row(variant=variant, rounds={n: figures(rate) for n, rate in enumerate(rates, start=1)})


@pytest.mark.slow
def test_ours_and_a_peer_are_measured_on_the_same_samples_and_compared():
    done = run(
        "benchmarks.training",
        *("--conversations", CONVERSATIONS, "--repeats", 1, "--tokens", 2500),
        *("--variants", "ours", "hf_trainer", "--profile", "--json"),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    assert [one["variant"] for one in document["rows"]] == ["ours", "hf_trainer"]
    for one in document["rows"]:
        (only,) = one["rounds"]
        assert only["num_tokens"] == document["inputs"]["num_tokens"]
        assert only["tokens_per_cpu_s"] == pytest.approx(only["num_tokens"] / only["cpu_s"])
        assert 100 < one["peak_rss_mb"] < math.inf
    (comparison,) = document["checks"]
    ours, peer = (one["tokens_per_cpu_s"] for one in document["rows"])
    assert comparison["value"] == pytest.approx(ours / peer)
    shares = document["rows"][0]["rounds"][0]["shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["backward"] > shares["outside"]


def test_ratios_are_taken_round_by_round_so_that_a_slow_round_does_not_count_twice():
    rows = [row(Variant.OURS, 400, 200, 410), row(Variant.PADDING, 200, 100, 100)]
    (only,) = check(rows)
    assert (only.name, only.value, only.is_met) == ("ours_vs_padding", 2.0, True)


def test_a_variant_that_failed_is_not_compared():
    rows = [row(Variant.OURS, 400), Row(variant=Variant.TRL_PACKED, errors=["round 1: failed"])]
    assert check(rows) == []


def test_without_a_gpu_the_gpu_benchmark_says_so_in_a_line_and_exits_3():
    arguments = ["--model", ROOT / "examples" / "tiny-llama", "--conversations", CONVERSATIONS]
    done = run("benchmarks.gpu", *arguments, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == "There is no GPU here; benchmarks.training measures on a processor.\n"


def test_flops_grow_with_the_samples_that_tokens_are_in_not_with_what_is_packed_together():
    size = ModelSize(num_parameters=1000, num_layers=2, width=10)
    assert flops_per_token(size, mean_length([8, 8])) == 6 * 1000 + 12 * 2 * 10 * 8
    assert flops_per_token(size, mean_length([12, 4])) == 6 * 1000 + 12 * 2 * 10 * 10


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", 70),
    ],
)
def test_peaks_are_those_of_the_very_gpu(name, tera):
    assert peak_flops(name) == tera * 1e12


def test_a_gpu_of_unknown_name_has_no_peak():
    assert peak_flops("Tesla T4") is None
