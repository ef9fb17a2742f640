"""Break the protocol on purpose, one bug at a time, and see that the tests notice each.

Run: python -m tests.mutations [NAME...]; takes some ten minutes. A bug counts as caught where tests
fail, not where they cannot be collected or the bug does not even run; and the same tests pass
without it.
"""

# ruff: noqa: T201 a script prints its results

from __future__ import annotations

import os
import re
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
_RETENTION = ("-m", "pytest", "-q", "-x", "tests/checkpoints/test_retention.py")
_CONDUCTOR = ("-m", "pytest", "-q", "-x", "tests/orchestrator/skypilot/test_conductor.py")
_CAUGHT = 1
"""The exit status of pytest when tests failed, and of the simulation when an invariant broke."""
_DOES_NOT_RUN = re.compile(r"\b(Syntax|Indentation|Name|UnboundLocal|Attribute|Import)Error\b")


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
        name="a shard that is stored counts as whole",
        path="checkpoints/uploader.py",
        before="        if sizes.get(entry.key) != entry.size:\n",
        after="        if entry.key not in sizes:\n",
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
        name="a claim forgets what HEAD followed",
        path="checkpoints/fence.py",
        before="            parent=head.parent if head else None,\n",
        after="            parent=None,\n",
    ),
    Mutation(
        name="who no longer owns the run may commit",
        path="checkpoints/fence.py",
        before="    if found is None or found[0].attempt != manifest.attempt:\n",
        after="    if found is None:\n",
    ),
    Mutation(
        name="who no longer owns the run may go back",
        path="checkpoints/fence.py",
        before="""        if found is None or found[0].attempt != attempt:
            raise _fenced(run, attempt, _owner(found))
        if found[0] == moved""",
        after="""        if found is None:
            raise _fenced(run, attempt, _owner(found))
        if found[0] == moved""",
        tests=_FENCE,
    ),
    Mutation(
        name="a commit need not follow HEAD",
        path="checkpoints/fence.py",
        before="    if head != manifest.head and head.manifest != manifest.parent:\n",
        after="    if False:\n",
        tests=_FENCE,
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
        tests=_RETENTION,
    ),
    Mutation(
        name="who no longer owns the run may delete",
        path="checkpoints/retention.py",
        before="    if found is None or found[0].attempt != attempt:\n",
        after="    if found is None:\n",
        tests=_RETENTION,
    ),
    Mutation(
        name="what was committed is taken for a dead attempt's rubbish",
        path="checkpoints/retention.py",
        before="    history = stored & {*chain.with_older(whole)}\n",
        after="    history = stored & {*chain.points[:1]}\n",
        tests=_RETENTION,
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
        name="behind a damaged checkpoint the run begins anew",
        path="checkpoints/history.py",
        before="    point, whole = point_of(parent), whole_checkpoints(store)\n",
        after="    return None\n",
    ),
    Mutation(
        name="a node trains on for ever without an owner",
        path="orchestrator/agent/lease.py",
        before="        return is_over or self._silent_s > self._silent_seconds\n",
        after="        return False\n",
    ),
    Mutation(
        name="an owner that is gone is waited for as if the store were down",
        path="orchestrator/agent/lease.py",
        before="                self._silent_s += since_s\n",
        after="                self._silent_s = 0.0\n",
        tests=("-m", "pytest", "-q", "-x", "tests/orchestrator/test_agent.py", "-k", "lease"),
    ),
    Mutation(
        name="a store that is silent renews the lease",
        path="orchestrator/agent/lease.py",
        before="            self._could_read = False\n",
        after="            self._changed_at = monotonic_now\n",
        tests=("-m", "pytest", "-q", "-x", "tests/orchestrator/agent/test_guards.py"),
    ),
    Mutation(
        name="an agent that stands still is never missed",
        path="orchestrator/ledger/heartbeat.py",
        before="        return now - self._heard_at > self._silent_s\n",
        after="        return False\n",
    ),
    Mutation(
        name="nodes that only SkyPilot cannot see are replaced",
        path="orchestrator/cloud/skypilot/strategy.py",
        before="            if await self._is_only_unseen():\n",
        after="            if False:\n",
        tests=("-m", "pytest", "-q", "-x", "tests/orchestrator/skypilot/test_strategy.py"),
    ),
    Mutation(
        name="a run that is cut off from its store has failed",
        path="orchestrator/agent/outcomes.py",
        before="EndReason.PREEMPTED if is_cut_off else EndReason.TRAINING_FAILED\n",
        after="EndReason.TRAINING_FAILED\n",
        tests=("-m", "pytest", "-q", "-x", "tests/orchestrator/agent/test_outcomes.py"),
    ),
    Mutation(
        name="the days that a controller was away are billed",
        path="orchestrator/cloud/skypilot/conductor.py",
        before="        return left_at if left_at < self._clock.now() else None\n",
        after="        return None\n",
        tests=_CONDUCTOR,
    ),
    Mutation(
        name="a set-up that hangs goes on for ever",
        path="sky/train.yaml",
        before="timeout --kill-after=60 3600 bash",
        after="bash",
        tests=("-m", "pytest", "-q", "-x", "tests/orchestrator/skypilot/test_autodown.py"),
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
        tests=_CONDUCTOR,
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
        for tests in dict.fromkeys(one.tests for one in chosen):
            status, printed = _run(copy, tests)
            assert status == 0, f"{' '.join(tests)} exits {status} without any bug:\n{printed}"
        num_missed = sum(not _is_caught(copy, one) for one in chosen)
    print(f"{len(chosen) - num_missed} of {len(chosen)} bugs caught")
    return num_missed > 0


def _is_caught(copy: Path, mutation: Mutation) -> bool:
    path = copy / mutation.path
    text = path.read_text()
    assert text.count(mutation.before) == 1, f"{mutation.path} has changed: {mutation.name}"
    path.write_text(text.replace(mutation.before, mutation.after))
    began = time.perf_counter()
    status, printed = _run(copy, mutation.tests)
    path.write_text(text)
    seconds = time.perf_counter() - began
    broken = _DOES_NOT_RUN.search(printed)
    is_caught = status == _CAUGHT and broken is None
    told = "caught" if is_caught else f"MISSED ({broken[0] if broken else f'exit status {status}'})"
    print(f"{told:8} {seconds:5.0f} s  {mutation.name}: {' '.join(mutation.tests[1:])}", flush=True)
    return is_caught


def _run(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests in the copy; return their exit status and what they printed."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *tests],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


if __name__ == "__main__":
    sys.exit(main())
