"""The trainer of the simulation: its state is a chain of digests, so one wrong step shows for ever.

What train/loop.py, train/saving.py and the uploader do, without tensors: the same calls of
`checkpoints` in the same order. Each step has its own batch, so a step that was lost, repeated or
trained on another's batch changes all that follow.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from checkpoints.errors import (
    BucketMissing,
    CheckpointError,
    Damaged,
    Fenced,
    ObjectMissing,
    RecordInvalid,
    SaveFailed,
    StoreUnreachable,
)
from checkpoints.fence import rewind
from checkpoints.history import committed_before_key
from checkpoints.inspect import read_manifest
from checkpoints.layout import checkpoint_prefix, manifest_key
from checkpoints.messages import Commit as CommitRequest
from checkpoints.messages import Committed, Retention
from checkpoints.places import only
from checkpoints.rank_object import Staged, upload
from checkpoints.reading import Extent, read
from checkpoints.uploader import commit_parts
from train.spool import Commit, Deleted, Outcome, OutcomeKind, Resumed, Step
from train.spool import Damaged as DamagedRecord
from train.spool import SaveFailed as SaveFailedRecord

NUM_RANKS = 2
_GENESIS = hashlib.sha256(b"the model's first weights").digest()
_BATCH_BYTES = 32
_FLUSH_PATIENCE_S = 60.0
_LAST_SAVE_TRIES = 3
# More than a run has checkpoints.
_MOST_TRIED = 100
_LOOK_S = 1.0


def after(state: bytes, step: int) -> bytes:
    """Return the weights after a step: a function of those before it and of its batch."""
    return hashlib.sha256(state + step.to_bytes(8, "big")).digest()


def undisturbed(num_steps: int) -> bytes:
    """Return the weights that so many steps lead to."""
    state = _GENESIS
    for step in range(1, num_steps + 1):
        state = after(state, step)
    return state


def weights_of(store, manifest) -> bytes:
    """Return the weights in a checkpoint, every byte verified; raise Damaged, ObjectMissing."""
    chunks = sorted(manifest.tensors["weights"].chunks, key=lambda chunk: chunk.offsets)
    data = bytearray(sum(chunk.length for chunk in chunks))
    rest = memoryview(data)
    for one in chunks:
        extent = Extent(object=one.object, start=one.start, length=one.length, crc64=one.crc64)
        read(store, [extent], [rest[: one.length]])
        rest = rest[one.length :]
    return bytes(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long things take, in virtual seconds, and how often checkpoints are saved."""

    startup_s: float
    step_s: float
    save_every: int


class Trainer:
    """Runs as threads of a node's process; the agent reads `records` and `outcome`."""

    def __init__(self, process, store, *, run, claim, num_steps, pace) -> None:
        self._process, self._store, self._pace = process, store, pace
        self._run, self._attempt, self._key = run, claim.attempt, claim.parent
        self._num_steps = num_steps
        self.records: list = []
        self.outcome: Outcome | None = None
        self.leaves_at: float | None = None
        """Virtual second by which a notice or its agent wants it gone."""
        self.num_uploaded = 0
        """Records that are in the store, as its agent says."""
        self.wants_upload = False
        self.step = 0
        self._state = _GENESIS
        self._saved_step = 0
        self._save: list[Committed | CheckpointError] | None = None
        self._saving_step = 0

    def run(self) -> None:
        try:
            kind, error = self._train(), None
        except Fenced as fenced:
            kind, error = OutcomeKind.FENCED, fenced.what
        except StoreUnreachable as silence:
            kind, error = OutcomeKind.CUT_OFF, silence.what
        except CheckpointError as failure:
            kind, error = OutcomeKind.FAILED, failure.what
        self.outcome = Outcome(outcome=kind, step=self.step, at=self._process.now(), error=error)

    def _train(self) -> OutcomeKind:
        self._process.pause(self._pace.startup_s)
        self._restore()
        while self.step < self._num_steps:
            if self.leaves_at is not None:
                return self._leave()
            self._take_step()
            if self._save:
                self._settle()
            if self.step % self._pace.save_every == 0 and self.step < self._num_steps:
                self._begin()
        self._settle()
        for _ in range(_LAST_SAVE_TRIES):
            if self._saved_step == self.step:
                return OutcomeKind.DONE
            self._begin()
            self._settle()
        if self._saved_step == self.step:
            return OutcomeKind.DONE
        raise SaveFailed("The last step could not be saved", "Resume the run.")

    def _restore(self) -> None:
        """Take the last good checkpoint; as train/restore.py."""
        key, manifest = self._key, None
        num_tried = 0
        while key is not None:
            num_tried += 1
            assert num_tried <= _MOST_TRIED, "I10: it tries checkpoints for ever"
            try:
                manifest = read_manifest(self._store, key)
                self._state = weights_of(self._store, manifest)
                break
            except (Damaged, ObjectMissing, RecordInvalid, BucketMissing) as error:
                what = error.what
                self._record(DamagedRecord(at=self._process.now(), manifest=key, what=what))
                before = committed_before_key(self._store, key, is_last=key == self._key)
                key, manifest = (None if before is None else manifest_key(*before)), None
        if key != self._key:
            rewind(self._store, run=self._run, attempt=self._attempt, to=manifest)
        if manifest is None:
            self._state = _GENESIS
        self.step = self._saved_step = 0 if manifest is None else manifest.step
        num_bytes = 0 if manifest is None else manifest.num_bytes
        self._record(
            Resumed(
                at=self._process.now(),
                step=self.step,
                manifest=key,
                num_bytes=num_bytes,
                seconds=1.0,
                world_size=NUM_RANKS,
                numerics="one",
            )
        )

    def _take_step(self) -> None:
        started_at = self._process.now()
        self._process.pause(self._pace.step_s)
        self.step += 1
        self._state = after(self._state, self.step)
        self._record(
            Step(
                at=max(started_at, self._process.now()),
                step=self.step,
                started_at=started_at,
                seconds=self._pace.step_s,
                loss=int.from_bytes(self._state[:6], "big") / 2**48,
                grad_norm=int.from_bytes(self._state[6:12], "big") / 2**48,
                learning_rate=1e-3,
                num_tokens=100,
                num_trained_tokens=80,
            )
        )

    def _leave(self) -> OutcomeKind:
        """Save what there is time for."""
        self._settle()
        if self.step > self._saved_step and self._process.loop.seconds < self.leaves_at:
            self._begin()
            self._settle()
        return OutcomeKind.SAVED

    def _begin(self) -> None:
        self._settle()
        self._save, self._saving_step = [], self.step
        step, state, outcome = self.step, self._state, self._save
        self._process.start(lambda: outcome.append(self._upload(step, state)))

    def _upload(self, step: int, state: bytes) -> Committed | CheckpointError:
        """Write the ranks' objects and commit them; as the uploader does, beside the training."""
        prefix = checkpoint_prefix(step, self._attempt)
        size = len(state) // NUM_RANKS
        try:
            parts = []
            for rank in range(NUM_RANKS):
                staged = Staged(
                    name="weights",
                    dtype="U8",
                    shape=(len(state),),
                    first=rank * size,
                    rows_shape=(size,),
                    memory=memoryview(state)[rank * size : (rank + 1) * size],
                )
                key = f"{prefix}/rank-{rank:05d}-of-{NUM_RANKS:05d}.safetensors"
                parts.append(upload(self._store, key, [staged]))
            self._flush()
            request = CommitRequest(
                run=self._run,
                attempt=self._attempt,
                step=step,
                world_size=NUM_RANKS,
                created_at=self._process.now(),
                state={"step": step},
                retention=Retention(keep_last=2, keep_every=None),
            )
            return commit_parts(only(self._store), request, parts)
        except CheckpointError as error:
            return error

    def _flush(self) -> None:
        """Wait until what was recorded is uploaded, though not for ever."""
        self.wants_upload = True
        wanted, give_up_at = len(self.records), self._process.loop.seconds + _FLUSH_PATIENCE_S
        while self.num_uploaded < wanted and self._process.loop.seconds < give_up_at:
            self._process.pause(_LOOK_S)

    def _settle(self) -> None:
        """Wait for the save in flight and go by its outcome; raise Fenced."""
        if self._save is None:
            return
        while not self._save:
            self._process.pause(_LOOK_S)
        (outcome,), self._save = self._save, None
        if isinstance(outcome, Fenced):
            raise outcome
        now, step = self._process.now(), self._saving_step
        if isinstance(outcome, CheckpointError):
            self._record(SaveFailedRecord(at=now, step=step, what=outcome.what))
            return
        self._saved_step = step
        self._record(
            Commit(
                at=now,
                step=step,
                manifest=outcome.manifest,
                num_bytes=outcome.num_bytes,
                num_objects=outcome.num_objects,
                seconds=1.0,
            )
        )
        for checkpoint in outcome.deleted:
            self._record(Deleted(at=now, checkpoint=checkpoint))

    def _record(self, record) -> None:
        self.records.append(record)
