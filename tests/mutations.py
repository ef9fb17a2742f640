"""Break the protocol on purpose, one bug at a time, and see that the tests notice each.

Run: python -m tests.mutations [NAME...]; takes some five minutes. A bug counts as caught where
tests fail, not where they cannot be collected; and the same tests pass without it.
"""

# ruff: noqa: T201 a script prints its results

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_COPIED = ("orchestrator", "train", "checkpoints", "tests", "examples", "sky", "pyproject.toml")
SIMULATION = ("-m", "tests.simulation", "--seeds", "100")
_FENCE = ("-m", "pytest", "-q", "-x", "tests/checkpoints/test_fence.py", "-k", "not s3")
_CAUGHT = 1
"""The exit status of pytest when tests failed, and of the simulation when an invariant broke."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One bug: what is written in place of what, and by which tests it has to be caught."""

    name: str
    path: str
    before: str
    after: str
    tests: Sequence[str] = SIMULATION


MUTATIONS = (
    Mutation(
        name="HEAD moves before the manifest is stored",
        path="checkpoints/fence.py",
        before="""        if not is_stored:
            _create_manifest(store, manifest)
            is_stored = True
        if head == moved or _move_head(store, moved, version):
            return moved
""",
        after="""        if head == moved or _move_head(store, moved, version):
            _create_manifest(store, manifest)
            return moved
""",
    ),
    Mutation(
        name="the manifest is committed before the shards are known to be there",
        path="checkpoints/uploader.py",
        before="    _check_objects(places.objects, manifest)\n",
        after="",
    ),
    Mutation(
        name="HEAD is overwritten without comparing",
        path="checkpoints/fence.py",
        before="        store.replace(HEAD_KEY, data, version)\n",
        after="        store.put(HEAD_KEY, data)\n",
    ),
    Mutation(
        name="a claim takes a number that another has taken",
        path="checkpoints/fence.py",
        before="""        if not _create(store, attempt_key(number), claim.to_json()):
            continue
""",
        after="        _create(store, attempt_key(number), claim.to_json())\n",
        tests=_FENCE,
    ),
    Mutation(
        name="who no longer owns the run may commit",
        path="checkpoints/fence.py",
        before="    if found is None or found[0].attempt != manifest.attempt:\n",
        after="    if found is None:\n",
    ),
    Mutation(
        name="a commit whose reply is lost counts as failed",
        path="checkpoints/fence.py",
        before="""    except StoreUnreachable:
        if not _holds(store, HEAD_KEY, data):
            raise
    return True
""",
        after="""    except StoreUnreachable:
        raise
    return True
""",
        tests=_FENCE,
    ),
    Mutation(
        name="a write whose reply is lost counts as done",
        path="checkpoints/fence.py",
        before="""    except StoreUnreachable:
        if not _holds(store, key, data):
            raise
    return True
""",
        after="""    except StoreUnreachable:
        return True
    return True
""",
    ),
    Mutation(
        name="HEAD's parent is collected",
        path="checkpoints/retention.py",
        before="for key in (head.manifest, head.parent) if key is not None}",
        after="for key in (head.manifest,) if key is not None}",
        tests=("-m", "pytest", "-q", "-x", "tests/checkpoints/test_retention.py"),
    ),
    Mutation(
        name="what was committed is taken for a dead attempt's rubbish",
        path="checkpoints/retention.py",
        before="    history = stored & {*chain.with_older(whole)}\n",
        after="    history = stored & {*chain.points[:1]}\n",
        tests=("-m", "pytest", "-q", "-x", "tests/checkpoints/test_retention.py"),
    ),
    Mutation(
        name="bytes are not compared with their checksums",
        path="checkpoints/reading.py",
        before="        if block_checksums(buffer) != extent.crc64:\n",
        after="        if len(block_checksums(buffer)) != len(extent.crc64):\n",
    ),
    Mutation(
        name="behind a damaged checkpoint the newest one listed is taken",
        path="checkpoints/history.py",
        before="    if parent != key and (point in whole or is_last):\n        return point\n",
        after="    return max(whole)\n",
    ),
    Mutation(
        name="a node trains on for ever without an owner",
        path="orchestrator/agent/lease.py",
        before="        return monotonic_now - self._changed_at > self._lease_seconds\n",
        after="        return False\n",
    ),
    Mutation(
        name="facts that follow a lost reply are dropped",
        path="orchestrator/ledger/journal.py",
        before="            self._pending = "
        "[entry for entry in self._pending if entry.number not in stored]\n",
        after="            self._pending = []\n",
        tests=("-m", "pytest", "-q", "-x", "tests/orchestrator/test_journal.py"),
    ),
    Mutation(
        name="the last fact that was read wins, not the last that happened",
        path="orchestrator/ledger/fold.py",
        before="    ordered = sorted(unique.values(), key=lambda entry: entry.order)\n",
        after="    ordered = list(unique.values())\n",
    ),
    Mutation(
        name="saving and stopping are not paid for within the budget",
        path="orchestrator/policy/decide.py",
        before="    committed = history.usd + _unavoidable_usd(history, offers, limits)\n",
        after="    committed = history.usd\n",
        tests=("-m", "pytest", "-q", "-x", "tests/orchestrator/agent/test_guards.py"),
    ),
    Mutation(
        name="a launch that is asked for again is another launch",
        path="orchestrator/cloud/skypilot/conductor.py",
        before="        if self._launching is None or self._launching[0] is not decision:\n",
        after="        if True:\n",
        tests=("-m", "pytest", "-q", "-x", "tests/orchestrator/skypilot/test_conductor.py"),
    ),
    Mutation(
        name="a replayed step is compared with nothing",
        path="orchestrator/replay.py",
        before="        if reference is not step:\n",
        after="        if reference is None:\n",
        tests=("-m", "pytest", "-q", "-x", "tests/orchestrator/test_replay.py"),
    ),
)


def main() -> int:
    wanted = sys.argv[1:]
    chosen = [one for one in MUTATIONS if not wanted or one.name in wanted]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        sound = {tests: _run(copy, tests) for tests in dict.fromkeys(one.tests for one in chosen)}
        for tests, status in sound.items():
            assert status == 0, f"{' '.join(tests)} exits {status} without any bug"
        num_missed = sum(not _is_caught(copy, one) for one in chosen)
    print(f"{len(chosen) - num_missed} of {len(chosen)} bugs caught")
    return num_missed > 0


def _is_caught(copy: Path, mutation: Mutation) -> bool:
    path = copy / mutation.path
    text = path.read_text()
    assert text.count(mutation.before) == 1, f"{mutation.path} has changed: {mutation.name}"
    path.write_text(text.replace(mutation.before, mutation.after))
    began = time.perf_counter()
    status = _run(copy, mutation.tests)
    path.write_text(text)
    seconds = time.perf_counter() - began
    told = "caught" if status == _CAUGHT else f"MISSED (exit status {status})"
    print(f"{told:8} {seconds:5.0f} s  {mutation.name}: {' '.join(mutation.tests[1:])}", flush=True)
    return status == _CAUGHT


def _run(copy: Path, tests: Sequence[str]) -> int:
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *tests], cwd=copy, env=environment, capture_output=True, check=False
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
