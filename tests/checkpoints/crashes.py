"""Kill a process before, within and after each of its store operations, and check what is left.

A script of its own, because it forks: python crashes.py save|claim|restore FOLDER. Prints a line
per crash.
"""

# ruff: noqa: T201 a script prints its results

import json
import os
import signal
import sys
from pathlib import Path

import torch

from checkpoints.errors import Damaged, Fenced
from checkpoints.fence import commit, read_head, rewind
from checkpoints.folder_store import FolderStore
from checkpoints.inspect import read_manifest, verify
from checkpoints.layout import attempt_key, parse_checkpoint_prefix
from checkpoints.load import load
from checkpoints.manifest import Manifest
from checkpoints.messages import Retention
from tests.checkpoints.saving import NOW, claim, save_step

OLDEST_STEP, OLD_STEP, NEW_STEP, NEXT_STEP = 4, 5, 6, 7
OPERATIONS = ("get", "read_into", "put", "create", "replace", "list", "delete")
KEEP_TWO = Retention(keep_last=2, keep_every=None)


class CrashingStore:
    """Kill this process by SIGKILL at the chosen operation; otherwise pass everything on."""

    def __init__(self, store, *, operation, when, log):
        self._store = store
        self._operation = operation
        self._when = when
        self._log = log
        self._num_operations = 0

    def __getattr__(self, name):
        found = getattr(self._store, name)
        return self._crashing(name, found) if name in OPERATIONS else found

    def _crashing(self, name, call):
        def run(*args):
            self._num_operations += 1
            if self._num_operations != self._operation:
                return call(*args)
            self._log.write_text(name)
            if self._when == "before":
                die()
            if self._when == "within":
                return self._run_half(name, call, args)
            try:
                return call(*args)
            finally:
                die()

        return run

    def _run_half(self, name, call, args):
        if name != "put":  # the other writes are one system call that counts
            die()

        def half():
            chunks = iter(args[1])
            yield next(chunks)
            die()

        return call(args[0], half())


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def tensors_at(step):
    return {"w": torch.full((3, 4), float(step)), "b": torch.arange(5.0) + step}


def save(store, attempt, step):
    local = {"rng": torch.tensor([step])}
    return save_step(
        store, attempt, step, tensors_at(step), local_tensors=local, retention=KEEP_TWO
    )


def restore(store, attempt):
    """Load the last good checkpoint, as the trainer does, and return its step."""
    head, _ = read_head(store)
    manifest = read_manifest(store, head.manifest)
    targets = {name: torch.zeros_like(tensor) for name, tensor in tensors_at(0).items()}
    rng = torch.tensor([0])
    try:
        assert load(store, manifest, tensors=targets, local_tensors={"rng": rng}) == set()
    except Damaged:
        rewind(store, run="r", attempt=attempt, to=read_manifest(store, manifest.parent))
        return restore(store, attempt)
    expected = tensors_at(head.step)
    assert rng.item() == head.step
    assert all(torch.equal(targets[name], expected[name]) for name in expected)
    return head.step


def check_history(store):
    """Check that HEAD names a whole checkpoint of its step, and so does its parent."""
    head, _ = read_head(store)
    manifest = read_manifest(store, head.manifest)
    assert head.parent == manifest.parent
    assert verify(store, read_manifest(store, manifest.parent)) == []
    assert verify(store, manifest) == []
    return head.step


def check_next_attempt_works(store):
    attempt = claim(store)
    step = restore(store, attempt)
    save(store, attempt, NEXT_STEP)
    assert check_history(store) == NEXT_STEP
    head, _ = read_head(store)
    assert parse_checkpoint_prefix(head.parent)[0] == step
    # Neither the dead attempt's rubbish nor more than the last two is left.
    left = {e.key.rpartition("/")[0] for e in store.list("checkpoints/")}
    assert left == {key.rpartition("/")[0] for key in (head.manifest, head.parent)}
    return attempt


def check_zombie_is_fenced(store, attempt):
    before = read_head(store)
    late = Manifest(
        run="r",
        attempt=attempt,
        step=NEXT_STEP + 1,
        parent=before[0].manifest,
        world_size=1,
        created_at=NOW,
        objects=(),
        tensors={},
        state={},
    )
    for act in (
        lambda: commit(store, late),
        lambda: rewind(store, run="r", attempt=attempt, to=None),
    ):
        try:
            act()
        except Fenced:
            assert read_head(store) == before
        else:
            raise AssertionError("a dead attempt moved HEAD")


def fork(act):
    """Run `act` in a child and return the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        except BaseException:  # noqa: BLE001 a child must not go on as the parent
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def crash_save(store, crashing):
    """Die while saving, committing or collecting."""
    attempt = claim(store)
    signal_number = fork(lambda: save(crashing, attempt, NEW_STEP))
    step = check_history(store)
    check_next_attempt_works(store)
    check_zombie_is_fenced(store, attempt)
    return signal_number, step


def crash_claim(store, crashing):
    """Die while claiming."""
    signal_number = fork(lambda: claim(crashing))
    step = check_history(store)
    owner = read_head(store)[0].attempt
    taken = [n for n in range(1, 9) if any(e.key == attempt_key(n) for e in store.list(""))]
    assert check_next_attempt_works(store) == max(taken) + 1
    check_zombie_is_fenced(store, owner)
    return signal_number, step


def crash_restore(store, crashing):
    """Die while restoring from a damaged checkpoint, and going back to the one before."""
    attempt = claim(store)
    save(store, attempt, NEW_STEP)
    key = read_manifest(store, read_head(store)[0].manifest).objects[0].key
    store.put(key, store.get(key).data[:-1] + b"x")
    attempt = claim(store)
    signal_number = fork(lambda: restore(crashing, attempt))
    step = read_head(store)[0].step
    check_next_attempt_works(store)
    check_zombie_is_fenced(store, attempt)
    return signal_number, step


def run(scenario, folder, operation, when):
    """Crash once and return the operation that was hit and the step that survived."""
    root, log = folder / f"{operation}-{when}", folder / "operation"
    log.unlink(missing_ok=True)
    store = FolderStore(root)
    attempt = claim(store)
    for step in (OLDEST_STEP - 1, OLDEST_STEP, OLD_STEP):
        save(store, attempt, step)
    crashing = CrashingStore(FolderStore(root), operation=operation, when=when, log=log)
    signal_number, step = scenario(store, crashing)
    name = log.read_text() if log.exists() else None
    assert signal_number == (signal.SIGKILL if name else 0), "a planned crash did not fire"
    return {"operation": operation, "when": when, "name": name, "step": step}


def main():
    scenarios = {"save": crash_save, "claim": crash_claim, "restore": crash_restore}
    for when in ("before", "within", "after"):
        operation, name = 0, "start"
        while name is not None:
            operation += 1
            crash = run(scenarios[sys.argv[1]], Path(sys.argv[2]), operation, when)
            name = crash["name"]
            print(json.dumps(crash))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
