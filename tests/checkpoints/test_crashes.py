"""A process killed at any store operation leaves a whole checkpoint and a run that goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints.layout import parse_checkpoint_prefix
from checkpoints.store import open_store
from tests.checkpoints.ranks import claimed, run_ranks
from tests.fault_record import record_fault

ROOT = Path(__file__).parents[2]
WHENS = ("before", "within", "after")
UPLOAD = ["put"]
COMMIT = ["get", "list", "get", "get", "create", "replace"]
# The first rank's uploader commits as well.
UPLOADERS = {0: [*UPLOAD, *COMMIT], 1: UPLOAD}
# The second rank reads its own object, and the first one's for what is not split.
LOADS = [["get", "get", "read_into"], ["get", "get", "read_into", "read_into"]]
# HEAD; what is there; the chain of parents to where it was pruned; pins; then what goes.
COLLECT = ["get", "list", *["get"] * 4, "list", "get", "delete", "list", "delete"]
OPERATIONS = {
    "save": [*UPLOAD, *COMMIT, *COLLECT],
    "claim": ["get", "create", "replace"],
    # HEAD, manifest, the damaged object twice; the parent's manifest, HEAD; then the same again.
    "restore": [
        *("get", "get", "read_into", "read_into", "get", "get", "replace"),
        *("get", "get", "read_into"),
    ],
}


def crashes(scenario, folder):
    """Run every crash of a scenario; the script checks what each one leaves."""
    script = Path(__file__).with_name("crashes.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), scenario, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("scenario", OPERATIONS)
def test_a_crash_at_any_operation_leaves_a_whole_checkpoint_and_a_run_that_goes_on(
    scenario, tmp_path
):
    found = crashes(scenario, tmp_path)
    operations = OPERATIONS[scenario]
    moves_head = {"save": 7, "claim": 3, "restore": 7}[scenario]
    old, new = {"save": (5, 6), "claim": (5, 5), "restore": (6, 5)}[scenario]
    for when in WHENS:
        fired = [crash for crash in found if crash["when"] == when]
        # The last run of each kind meets no crash: every operation was hit before.
        assert [crash["name"] for crash in fired] == [*operations, None]
        for crash in fired:
            is_moved = crash["operation"] + (when == "after") > moves_head
            assert crash["step"] == (new if is_moved else old), crash
    hit = [crash for crash in found if crash["name"]]
    record_fault(
        "F1" if scenario == "save" else "F2",
        f"SIGKILL before, within and after each store operation of a {scenario}",
        injected=len(hit),
        committed_steps_lost=sum(max(0, min(old, new) - crash["step"]) for crash in hit),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "number"),
    [(rank, n) for rank, names in UPLOADERS.items() for n in range(1, len(names) + 1)],
)
def test_an_uploader_killed_at_any_operation_costs_one_save_at_most(rank, number, tmp_path):
    """Two nodes of one rank each: the killed one starts another, and both agree on the outcome."""
    operation = UPLOADERS[rank][number - 1]
    # All but a put are one call: within is before.
    whens = [when for when in WHENS if operation == "put" or when != "within"]
    jobs = []
    for when in whens:
        folder = tmp_path / when
        folder.mkdir()
        store = open_store((folder / "run").as_uri())
        plan = {"operation": number, "when": when, "log": str(folder / "log")}
        (folder / "plan.json").write_text(json.dumps(plan))
        attempt = claimed(store)
        jobs.append(
            {
                "act": "crash",
                "url": store.url,
                "world_size": 2,
                "ranks_per_node": 1,
                "attempt": attempt,
                "crashing_rank": rank,
                "plan": str(folder / "plan.json"),
            }
        )
    printed, lost = run_ranks(tmp_path, *jobs), 0
    hit = [(tmp_path / when / "log").read_text() for when in whens]
    assert hit == [operation] * len(whens)
    for when, lines in zip(whens, printed, strict=True):
        said = [[line for line in rank_lines if line != "flushed"] for rank_lines in lines]
        assert said[0] == said[1]
        # A commit whose reply was lost is asked for again; an upload is not.
        first = "raised SaveFailed" if number == 1 else "saved checkpoints/step-00000001.a001"
        assert said[0][0].startswith(first), (when, said)
        assert said[0][1].startswith("saved checkpoints/step-00000002.a001")
        assert said[0][2] == f"history {[2] if number == 1 else [2, 1]}"
        lost += len(told_steps(said[0]) - set(json.loads(said[0][2].removeprefix("history "))))
    record_fault(
        "F1",
        f"SIGKILL of rank {rank}'s uploader at each of its store operations, two ranks",
        injected=len(hit),
        committed_steps_lost=lost,
    )


def told_steps(lines):
    """Return the steps that a rank was told are saved."""
    saved = [line.split()[1] for line in lines if line.startswith("saved ")]
    return {parse_checkpoint_prefix(manifest)[0] for manifest in saved}


def test_an_uploader_ends_with_the_rank_that_started_it(tmp_path):
    store = open_store((tmp_path / "run").as_uri())
    job = {"act": "die", "world_size": 2, "attempt": claimed(store), "killed": [0]}
    ((_, second),) = run_ranks(tmp_path, job)
    assert second[-1] == "uploader gone"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_at_any_operation_of_a_load_changes_nothing(rank, tmp_path):
    """Two ranks load; afterwards both find every tensor as it was saved."""
    store = open_store((tmp_path / "run").as_uri())
    save = {"act": "save", "world_size": 2, "attempt": claimed(store)}
    operations = LOADS[rank]
    crashes = [(n, when) for n in range(1, len(operations) + 1) for when in ("before", "after")]
    jobs = [
        {
            "act": "crash load",
            "world_size": 2,
            "killed": [rank],
            "operation": number,
            "when": when,
            "log": str(tmp_path / f"{number}-{when}"),
        }
        for number, when in crashes
    ]
    *_, loaded = run_ranks(tmp_path, save, *jobs, {"act": "load", "world_size": 2})
    assert loaded == [["missing []"]] * 2
    hit = [(tmp_path / f"{number}-{when}").read_text() for number, when in crashes]
    assert hit == [name for name in operations for _ in ("before", "after")]
    lost = sum(line != "missing []" for lines in loaded for line in lines)
    what = "SIGKILL of a rank at each store operation of a load"
    record_fault("F2", what, injected=len(hit), committed_steps_lost=lost)
