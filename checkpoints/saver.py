"""Save while training goes on: stage at once, upload and commit in the background.

One save is in flight at a time. Each rank copies its state into shared memory; its node's uploader
process writes the object; rank 0's commits. Ranks meet in a TCPStore of their own: a collective
from a second thread can deadlock with the training's.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import torch
import torch.distributed as dist
from pydantic import JsonValue, TypeAdapter
from torch import Tensor
from torch._C._distributed_c10d import HashStore, Store, TCPStore

from checkpoints import messages
from checkpoints.errors import CheckpointError, SaveFailed
from checkpoints.layout import shard_key
from checkpoints.messages import Commit, Committed, Refusal, Retention, Slot, Upload, Uploaded
from checkpoints.staging import SlotPlanner, StagingBuffer
from checkpoints.uploader_client import UPLOADER, UploaderClient, listen

log = logging.getLogger(__name__)

DEADLINE = timedelta(minutes=15)
# Beyond the deadline rank 0 waits so long for what the others make of it, ...
_LATE_S = 5.0
# ... gives a commit that is begun by then so long, ...
_COMMIT_S = 30.0
# ... and takes so long to find out what became of one that was not answered.
_SETTLE_S = 15.0
# What the other ranks wait for its word: all of that, and the 10 s that `before_commit` may take.
_GRACE_S = 75.0
# How long ranks wait for each other when they set up; they come together from the model's build.
_MEETING_TIMEOUT = timedelta(minutes=5)

_REPLY: TypeAdapter[Uploaded | Committed | Refusal] = TypeAdapter(messages.Reply)


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """What a save is of; the same on every rank."""

    step: int
    state: Mapping[str, JsonValue]
    created_at: datetime
    retention: Retention | None = None


class Saver:
    """One rank's part in the saves of an attempt; for the training's thread only."""

    def __init__(
        self,
        store_url: str,
        *,
        objects_url: str | None = None,
        other_urls: Sequence[str] = (),
        run: str,
        attempt: int,
        rank: int,
        world_size: int,
        local_rank: int,
        group: dist.ProcessGroup | None,
        before_commit: Callable[[], None] = lambda: None,
        deadline: timedelta = DEADLINE,
        uploader: Sequence[str] = UPLOADER,
    ) -> None:
        """Meet the other ranks; all ranks of `group` call it (None: this is the only rank).

        Records go to `store_url`, and so do objects unless a store near this node is named;
        `other_urls` are stores where retention finds older objects.

        `before_commit` is called by rank 0, in a thread, when all objects are stored. A save that
        takes longer than `deadline` has failed, on all ranks.
        """
        self._run, self._attempt = run, attempt
        self._rank, self._world_size = rank, world_size
        self._before_commit = before_commit
        self._deadline_s = deadline.total_seconds()
        self._board = _meet(rank, group)
        listener, leader = None, rank - local_rank
        if local_rank == 0:
            listener, address = listen()
            self._board.set(f"uploader/{leader}", address.hex())
        address = bytes.fromhex(self._board.get(f"uploader/{leader}").decode())
        urls = (store_url, objects_url or store_url, *other_urls)
        self._client = UploaderClient(address, listener, uploader, urls)
        self._planner = SlotPlanner(rank)
        self._buffer: StagingBuffer | None = None
        self._copies = _GpuCopies() if torch.cuda.is_available() else None
        self._num_saves = 0
        self._outcome: Committed | CheckpointError | None = None
        self._thread: threading.Thread | None = None
        self._staged = threading.Event()
        self._staged.set()

    def prepare(self, tensors: Mapping[str, Tensor], local_tensors: Mapping[str, Tensor]) -> None:
        """Allocate the memory and start the uploader ahead of the first save, in a thread."""
        self._run_in_thread(self._prepare, self._planner.plan(tensors, local_tensors))

    def begin(
        self, save: Save, tensors: Mapping[str, Tensor], local_tensors: Mapping[str, Tensor]
    ) -> None:
        """Start a save; the tensors may be read but not changed until `fence` returns.

        All ranks call it with the same `save`, once all know the outcome of the one before. A step
        that is saved again must be saved with the same state: its objects are written again.
        """
        assert not self.is_in_flight, "one save at a time"
        slots = self._planner.plan(tensors, local_tensors)
        if self._thread is not None:
            self._thread.join()
        self._num_saves += 1
        self._outcome = None
        self._staged.clear()
        if self._copies is not None:
            self._copies.mark()
        self._run_in_thread(self._see_through, save, slots)

    def fence(self) -> None:
        """Return when the tensors may change; at once when no save is being staged."""
        self._staged.wait()
        if self._copies is not None:
            self._copies.hold_back()

    @property
    def is_in_flight(self) -> bool:
        """Say whether a save has begun whose outcome this rank does not know yet."""
        return self._num_saves > 0 and self._outcome is None

    def outcome(self) -> Committed | CheckpointError | None:
        """Return what became of the last save, None while it is in flight; errors are not raised.

        Fenced: a later attempt owns the run. SaveFailed: nothing was committed as far as is known,
        and training can go on; HEAD tells.
        """
        return self._outcome

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> Committed | CheckpointError:
        """Return the outcome of the last save, at the latest 75 s after its deadline.

        `meanwhile` is called now and then, about once a second.
        """
        assert self._thread is not None, "nothing was begun"
        while self._thread.is_alive():
            self._thread.join(timeout=1.0)
            meanwhile()
        assert self._outcome is not None
        return self._outcome

    def close(self) -> None:
        """End the uploader; a save in flight is lost.

        Rank 0 calls it when all ranks know the last outcome, which they read from its memory.
        """
        self._client.close()
        if self._buffer is not None:
            self._buffer.close()

    def _run_in_thread(self, act: Callable[..., None], *args: object) -> None:
        self._thread = threading.Thread(target=act, args=args, name="save", daemon=True)
        self._thread.start()

    def _prepare(self, slots: list[tuple[Slot, Tensor]]) -> None:
        try:
            self._client.attach(self._memory(slots))
        except (CheckpointError, OSError, RuntimeError) as error:
            log.warning("saves could not be prepared: %s", error)  # the first save will tell

    def _see_through(self, save: Save, slots: list[tuple[Slot, Tensor]]) -> None:
        """Stage, upload, and have rank 0 commit; a failure anywhere is the outcome everywhere."""
        give_up_at = time.monotonic() + self._deadline_s
        try:
            mine: Uploaded | Committed | Refusal = self._upload(save, slots, give_up_at)
        except Exception as error:
            log.warning("rank %d could not save", self._rank, exc_info=error)
            mine = Refusal.of(error)
        finally:
            self._staged.set()
        try:
            outcome = self._settle(save, mine, give_up_at)
        except Exception as error:
            log.warning("the save of step %d was not settled", save.step, exc_info=error)
            outcome = Refusal.of(error)
        self._outcome = outcome.to_error() if isinstance(outcome, Refusal) else outcome

    def _upload(
        self, save: Save, slots: list[tuple[Slot, Tensor]], give_up_at: float
    ) -> Uploaded | Committed | Refusal:
        memory = self._memory(slots)
        if self._copies is not None:
            self._copies.queue(memory, slots)
        else:
            memory.copy(slots)
        self._staged.set()
        if self._copies is not None:
            self._copies.wait()
        self._client.attach(memory)
        key = shard_key(save.step, self._attempt, self._rank, self._world_size)
        request = Upload(key=key, slots=tuple(slot for slot, _ in slots))
        return self._client.ask(request, give_up_at=give_up_at)

    def _settle(
        self, save: Save, mine: Uploaded | Committed | Refusal, give_up_at: float
    ) -> Committed | Refusal:
        """Tell rank 0 what became of this rank's part and return what rank 0 makes of them all."""
        prefix = f"save/{self._num_saves}"
        self._board.set(f"{prefix}/part/{self._rank}", mine.model_dump_json())
        if self._rank == 0:
            outcome = self._commit(save, prefix, give_up_at)
            self._board.set(f"{prefix}/outcome", outcome.model_dump_json())
            return outcome
        answer = _REPLY.validate_json(self._read(f"{prefix}/outcome", give_up_at + _GRACE_S))
        assert not isinstance(answer, Uploaded)
        return answer

    def _commit(self, save: Save, prefix: str, give_up_at: float) -> Committed | Refusal:
        try:
            parts = []
            for rank in range(self._world_size):
                key = f"{prefix}/part/{rank}"
                answer = _REPLY.validate_json(self._read(key, give_up_at + _LATE_S))
                self._board.delete_key(key)
                if not isinstance(answer, Uploaded):
                    assert isinstance(answer, Refusal)
                    what = f"Rank {rank} could not save: {answer.what}"
                    return answer.model_copy(update={"what": what})
                parts.append(answer.part.model_dump_json().encode())
            self._before_commit()
            request = Commit(
                run=self._run,
                attempt=self._attempt,
                step=save.step,
                world_size=self._world_size,
                created_at=save.created_at,
                state=dict(save.state),
                retention=save.retention,
            )
            give_up_at = max(give_up_at, time.monotonic() + _COMMIT_S)
            try:
                answer = self._client.ask(request, parts=parts, give_up_at=give_up_at)
            except SaveFailed:
                # No answer, but it may have committed: asking again settles that, and changes
                # nothing if so.
                self._client.attach(self._memory([]))
                give_up_at = max(give_up_at, time.monotonic() + _SETTLE_S)
                answer = self._client.ask(request, parts=parts, give_up_at=give_up_at)
        except Exception as error:
            log.warning("step %d could not be committed", save.step, exc_info=error)
            return Refusal.of(error)
        assert not isinstance(answer, Uploaded)
        return answer

    def _read(self, key: str, give_up_at: float) -> bytes:
        """Return what another rank says; raise SaveFailed when the time is over."""
        left = timedelta(seconds=max(0.001, give_up_at - time.monotonic()))
        try:
            self._board.wait([key], left)
        except dist.DistStoreError as error:
            raise SaveFailed(
                f"No word of {key} within {self._deadline_s:g} s",
                "Check the network to the store, and the ranks' logs.",
            ) from error
        found: bytes = self._board.get(key)
        return found

    def _memory(self, slots: list[tuple[Slot, Tensor]]) -> StagingBuffer:
        num_bytes = sum(slot.length for slot, _ in slots)
        if self._buffer is None or self._buffer.num_bytes < num_bytes:
            outgrown, self._buffer = self._buffer, None
            if outgrown is not None:
                outgrown.close()
            self._buffer = StagingBuffer(num_bytes, is_pinned=self._copies is not None)
        return self._buffer


class _GpuCopies:
    """Copies to host memory on a stream of their own, beside the next step's work."""

    def __init__(self) -> None:
        self._device = torch.cuda.current_device()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def mark(self) -> None:
        """Note that what is queued now produces the state that is saved."""
        self._ready.record()

    def queue(self, memory: StagingBuffer, slots: list[tuple[Slot, Tensor]]) -> None:
        """Queue the copies behind what `mark` noted; called in the save's thread."""
        torch.cuda.set_device(self._device)
        self._stream.wait_event(self._ready)
        with torch.cuda.stream(self._stream):
            memory.copy(slots)
            self._copied.record()

    def hold_back(self) -> None:
        """Have the GPU finish the copies before whatever the current stream is given next."""
        torch.cuda.current_stream().wait_event(self._copied)

    def wait(self) -> None:
        """Return when the copies are done."""
        self._copied.synchronize()


def _meet(rank: int, group: dist.ProcessGroup | None) -> Store:
    """Return a key-value store that all ranks share, on a port of its own."""
    if group is None:
        return HashStore()
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    board = _tcp_store(host, 0, is_master=True) if rank == 0 else None
    port = torch.tensor([board.port if board is not None else 0])
    dist.broadcast(port, group=group, group_src=0)
    return board or _tcp_store(host, int(port.item()), is_master=False)


def _tcp_store(host: str, port: int, *, is_master: bool) -> TCPStore:
    return TCPStore(
        host, port, is_master=is_master, wait_for_workers=False, timeout=_MEETING_TIMEOUT
    )
