"""Specs and --set: whatever they hold is a run that survives run.json, or an error in two lines."""

from __future__ import annotations

import time
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.errors import OrchestratorError
from orchestrator.spec import RunSpec, format_duration, parse_duration, parse_spec
from orchestrator.spec_file import apply_overrides, load_spec
from tests.fuzz.mutation import RAW, VALUES, damaged, documents, foreseen, fuzzed
from tests.orchestrator.histories import make_spec

# Each may take so long, on a machine that does other things besides.
_MOST_S = 10.0
FULL = {
    "name": "demo",
    "store": "runs",
    "infra": ["aws", "gcp"],
    "nodes": {"count": 1, "accelerators": "A100-80GB:8"},
    "model": {"base": "tiny", "attention": "auto", "max_length": 2048},
    "data": {"train": "https://example.com/a.json", "eval_fraction": 0.01},
    "train": {"epochs": 3, "global_batch": 128, "seed": 0, "micro_batch": 1},
    "checkpoints": {"interval": "auto", "keep_last": 3, "stores": {"aws/us-east-1": "s3://b/runs"}},
    "limits": {"deadline": "30h", "budget_usd": 250, "market": "spot", "policy": "auto"},
    "tracking": {"wandb": {"project": "vicuna"}, "notify": {"on": ["finish"]}},
}
LOCAL = {
    **FULL,
    "infra": "local",
    "local": {"ranks": 2, "time_scale": 600, "preemptions": [{"after_step": 7}]},
}
KEYS = sorted(
    {
        *("name", "train", "train.seed", "limits.deadline", "local.preemptions", "a", "a.b.c", "."),
        *("infra", "store", "checkpoints.stores", "tracking.notify.on", "", "..", "train.", "\0"),
    }
)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join(['*' + before] * 9)}], y{name}: 1}}\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
TAGS = [
    *("!!bool x", "!!int ''", "!!float ''", "!!timestamp x", "!!binary '\xff'", "!!set {a, b}"),
    *("!!omap [a]", "!!pairs [a]", "!!null x", "!!python/object/apply:os.system [id]", "&a [*a]"),
    *("{? [a]: b}", "{? {a: b}: c}", "2026-13-45", "1:99:99", "0b", "0o9", "0x", "!!str [a]", "*a"),
    *("-", "? ", "|", ">", "%YAML 9.9", "--- a\n--- b", "<<: 1", "{<<: [1]}", "\ufeff", "!x y"),
]


def refused_or_whole(act) -> RunSpec | None:
    """Return a spec that can be written to run.json and read again, None where it was refused."""
    began = time.monotonic()
    try:
        spec = act()
    except OrchestratorError as error:
        foreseen(error)
        spec = None
    assert time.monotonic() - began < _MOST_S
    if spec is not None:
        again = RunSpec.model_validate_json(spec.model_dump_json())
        assert again == spec
        assert parse_spec(spec.model_dump(mode="json")) == spec
        deadline = spec.limits.deadline
        assert deadline is None or timedelta(0) < deadline
        assert "\0" not in spec.store + spec.model.base + spec.data.train
    return spec


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("specs") / "run.yaml"


def load(path: Path, text: bytes, overrides: tuple[str, ...] = ()) -> RunSpec | None:
    path.write_bytes(text)
    return refused_or_whole(lambda: load_spec(path, overrides))


def test_the_documents_that_are_changed_are_specs(path):
    for valid in (FULL, LOCAL):
        assert load(path, yaml.safe_dump(valid).encode()) is not None


@fuzzed
@given(document=documents(FULL) | documents(LOCAL))
def test_a_changed_spec_is_refused_or_whole(path, document):
    load(path, yaml.safe_dump(document, allow_unicode=False).encode("utf-8", "surrogatepass"))


@fuzzed
@given(text=damaged(yaml.safe_dump(LOCAL).encode()))
@example(text=b"name: &a [*a]")
@example(text=BOMB.encode())
@example(text=MERGED.encode())
@example(text=f"{BOMB}name: *i".encode())
@example(text=f"{BOMB}infra: *i".encode())
@example(text=b"[" * 100_000)
@example(text=b"a: " + b"9" * 5000)
@example(text=b"- " * 100_000)
def test_any_bytes_are_refused_or_whole(path, text):
    load(path, text)


@fuzzed
@given(
    key=st.sampled_from(sorted(FULL)), text=st.sampled_from([*TAGS, *RAW]) | st.text(max_size=20)
)
def test_any_yaml_in_place_of_a_value_is_refused_or_whole(path, key, text):
    lines = yaml.safe_dump({name: value for name, value in FULL.items() if name != key})
    load(path, f"{lines}{key}: {text}\n".encode("utf-8", "surrogatepass"))


@fuzzed
@given(
    amount=st.decimals("0.0000001", "999999999999", allow_nan=False),
    unit=st.sampled_from(["s", "min", "h", "d"]),
)
@example(amount=Decimal("9999999.123456789"), unit="d")
def test_any_duration_is_refused_or_kept_to_the_digit(amount, unit):
    try:
        duration = parse_duration(f"{amount:f}{unit}")
    except ValueError:
        return
    assert parse_duration(format_duration(duration)) == duration > timedelta()


@fuzzed
@given(
    key=st.sampled_from(KEYS) | st.text(max_size=6),
    value=st.sampled_from([*TAGS, *RAW, BOMB, MERGED])
    | st.sampled_from(VALUES).map(str)
    | st.text(max_size=12),
)
def test_any_override_is_refused_or_whole(path, key, value):
    path.write_text(yaml.safe_dump(LOCAL))
    overrides = (f"{key}={value}",)
    refused_or_whole(lambda: load_spec(path, overrides))
    refused_or_whole(lambda: apply_overrides(make_spec(), overrides))
