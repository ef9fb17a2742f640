"""Storage for `torch.distributed.checkpoint`: `dcp.save` commits a checkpoint like any other.

A tensor's name is its flat name in DCP ("model.0.weight"); values that are no tensors stand under
theirs in the manifest's state. DCP pickles these and its own metadata: nothing that comes from a
store is unpickled here.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, TypeVar

from pydantic import JsonValue
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from checkpoints.dcp_items import Read, batches, check_rows, metadata_of, pickled, staged, value_of
from checkpoints.errors import ObjectMissing, RecordInvalid
from checkpoints.fence import claim_attempt, parent_of, read_head
from checkpoints.history import committed_at
from checkpoints.inspect import holder_of, read_manifest
from checkpoints.layout import manifest_key, parse_checkpoint_prefix, shard_key
from checkpoints.load import read_rows
from checkpoints.manifest import Manifest
from checkpoints.messages import Commit, Retention
from checkpoints.places import only
from checkpoints.rank_object import Part, upload
from checkpoints.store import ObjectStore, open_store
from checkpoints.uploader import commit_parts
from checkpoints.values import from_json, to_json

log = logging.getLogger(__name__)

CheckpointId = str | os.PathLike[str]
_T = TypeVar("_T")

_STEP = re.compile(r"(?:step-)?([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _RankPart:
    """What one rank wrote, on its way to the coordinator."""

    part: Part
    state: dict[str, JsonValue]


class StoreWriter(StorageWriter):
    """Commits what `dcp.save` or `dcp.async_save` is given; one for all saves of an attempt."""

    def __init__(
        self,
        store_url: str,
        *,
        run: str,
        attempt: int | None = None,
        step: int | None = None,
        retention: Retention | None = None,
    ) -> None:
        """Name the run and its store; every rank does.

        Without an `attempt`, the coordinator claims the next one at its first save: from then on no
        earlier writer of the run can commit. Claim it before loading where two could run at once.
        `step` is what the next save is of; `checkpoint_id` says it anew. Nothing is pruned without
        a `retention`.
        """
        open_store(store_url)  # a wrong URL is to be known now, not at the first save
        self._store_url, self._run = store_url, run
        self._attempt, self._step = attempt, step
        self._retention = retention

    def reset(self, checkpoint_id: CheckpointId | None = None) -> None:
        """Take the step of the next save, as "12" or "step-00000012"; raise RecordInvalid."""
        if checkpoint_id is None:
            return
        self._step = _parse_step(checkpoint_id)
        if self._step is None:
            raise RecordInvalid(
                f"checkpoint_id {str(checkpoint_id)!r} names no step",
                "Give the step: checkpoint_id=str(step).",
            )

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: CheckpointId) -> bool:
        """Say whether `checkpoint_id` names a step."""
        return _parse_step(checkpoint_id) is not None

    # DCP says whether the ranks meet only to a method that has a parameter named `kwargs`.
    def set_up_storage_writer(self, is_coordinator: bool, *args: object, **kwargs: object) -> None:
        """Refuse, by RecordInvalid, ranks that do not meet."""
        if not kwargs.get("use_collectives", True):
            raise RecordInvalid(
                "use_collectives=False would make a checkpoint of each rank's part",
                "Save with use_collectives=True.",
            )

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan; raise RecordInvalid for tensors that are not split into rows."""
        check_rows(plan.items)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Name each rank's object, as the coordinator; raise Fenced or RecordInvalid."""
        if not all(plan.usable for plan in plans):
            # The ranks would take theirs from the cache, which names the objects of another step.
            raise RecordInvalid(
                "The planner caches plans, and these name the objects of one step",
                "Use DefaultSavePlanner without enable_plan_caching.",
            )
        if self._step is None:
            raise RecordInvalid("The save names no step", "Give it: checkpoint_id=str(step).")
        store = open_store(self._store_url)
        if self._attempt is None:
            self._attempt = _claim(store, len(plans))
        self._check_unsaved(store, self._step, self._attempt)
        return [
            replace(plan, storage_data=shard_key(self._step, self._attempt, rank, len(plans)))
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's object; raise SaveFailed or RecordInvalid for what cannot be saved."""
        values = [item for item in plan.items if item.type is WriteItemType.BYTE_IO]
        tensors = [item for item in plan.items if item.type is not WriteItemType.BYTE_IO]
        state = {
            item.index.fqn: to_json(item.index.fqn, value_of(planner, item)) for item in values
        }
        store = open_store(self._store_url)
        part = upload(store, plan.storage_data, [staged(planner, item) for item in tensors])
        # One result for all items, as they lie in one object; only `finish` reads it.
        result = WriteResult(
            index=MetadataIndex(part.object.key),
            size_in_bytes=part.object.size,
            storage_data=_RankPart(part=part, state=state),
        )
        return _done([result])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit all ranks' parts, as the coordinator; raise Fenced, SaveFailed, RecordInvalid."""
        written: list[_RankPart] = [result.storage_data for (result,) in results]
        point = parse_checkpoint_prefix(written[0].part.object.key)
        assert point is not None  # by `prepare_global_plan`
        step, attempt = point
        request = Commit(
            run=self._run,
            attempt=attempt,
            step=step,
            world_size=len(written),
            created_at=datetime.now(timezone.utc),
            state={name: value for one in written for name, value in one.state.items()},
            retention=self._retention,
        )
        places = only(open_store(self._store_url))
        committed = commit_parts(places, request, [one.part for one in written])
        log.info("committed %s, %d bytes", committed.manifest, committed.num_bytes)

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to go to DCP's checkpoint process without an attempt.

        It gets a copy for every save. Each would claim an attempt anew, and none ever be fenced.
        """
        if self._attempt is None:
            raise RecordInvalid(
                "A writer without an attempt cannot save in another process",
                "Claim one: checkpoints.fence.claim_attempt; or use AsyncCheckpointerType.THREAD.",
            )
        return self.__dict__

    def _check_unsaved(self, store: ObjectStore, step: int, attempt: int) -> None:
        """Raise Fenced early, and RecordInvalid for a step whose objects must not change."""
        key = manifest_key(step, attempt)
        parent_of(store, run=self._run, attempt=attempt, key=key)
        if store.list(key):
            raise RecordInvalid(
                f"{key} exists: attempt {attempt} has saved step {step}", "Save a later step."
            )


class StoreReader(StorageReader):
    """Reads for `dcp.load` what a `StoreWriter` or a `Saver` committed; every byte is verified."""

    def __init__(self, store_url: str, manifest: str | None = None) -> None:
        """Open the store; without the key of a `manifest`, each load takes the one of HEAD."""
        self._store = open_store(store_url)
        self._wanted: int | str | None = None
        self._manifest: Manifest | None = None
        self.reset(manifest)

    def reset(self, checkpoint_id: CheckpointId | None = None) -> None:
        """Take what to load, a step or the key of a manifest; raise RecordInvalid."""
        if checkpoint_id is None:
            return
        self._wanted = _parse_wanted(checkpoint_id)
        if self._wanted is None:
            raise RecordInvalid(
                f"checkpoint_id {str(checkpoint_id)!r} names no step and no manifest",
                "Give the step, or nothing for the last one.",
            )

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: CheckpointId) -> bool:
        """Say whether `checkpoint_id` names a step or a manifest."""
        return _parse_wanted(checkpoint_id) is not None

    # Without `kwargs`: where it has them, DCP asks a rank whose call failed once more, for metadata
    # of its own; if that succeeds, this rank waits in another collective than the rest.
    def read_metadata(self, *args: object) -> Metadata:
        """Return the manifest as DCP sees it; raise ObjectMissing or RecordInvalid."""
        self._manifest = read_manifest(self._store, self._key())
        return metadata_of(self._manifest)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: object, **kwargs: object
    ) -> None:
        """Do nothing: `read_metadata` keeps the manifest."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Tell the coordinator which checkpoint this rank found."""
        assert self._manifest is not None  # by `read_metadata`
        return replace(plan, storage_data=self._manifest.key)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Raise RecordInvalid if HEAD moved between two ranks' looks at it."""
        found = {plan.storage_data for plan in plans}
        if len(found) > 1:
            raise RecordInvalid(
                f"Ranks found different checkpoints: {', '.join(sorted(found))}",
                "Load again, or name the step: checkpoint_id=str(step).",
            )
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill this rank's tensors, then its values; raise Damaged or ObjectMissing."""
        assert self._manifest is not None  # by `read_metadata`
        state, records = self._manifest.state, self._manifest.tensors
        tensors = [item for item in plan.items if item.type is LoadItemType.TENSOR]
        values = [item for item in plan.items if item.type is LoadItemType.BYTE_IO]
        reads = (Read(planner, item, records[item.storage_index.fqn]) for item in tensors)
        store = holder_of(self._store, self._manifest)
        for batch in batches(reads):
            read_rows(store, [read.target for read in batch])
            for read in batch:
                read.finish()
        for item in values:
            planner.load_bytes(item, pickled(from_json(state[item.storage_index.fqn])))
        return _done(None)

    def _key(self) -> str:
        if isinstance(self._wanted, str):
            return self._wanted
        if self._wanted is not None:
            point = committed_at(self._store, self._wanted)
            if point is None:
                raise _nothing_to_load(self._store, f"checkpoint of step {self._wanted}")
            return manifest_key(*point)
        head = read_head(self._store)
        if head is None or head[0].manifest is None:
            raise _nothing_to_load(self._store, "committed checkpoint")
        return head[0].manifest


def _claim(store: ObjectStore, world_size: int) -> int:
    claim = claim_attempt(
        store,
        claimed_by=f"dcp on {socket.gethostname()}",
        claimed_at=datetime.now(timezone.utc),
        world_size=world_size,
        offer={},
    )
    return claim.attempt


def _parse_step(checkpoint_id: CheckpointId) -> int | None:
    match = _STEP.fullmatch(str(checkpoint_id))
    return int(match[1]) if match else None


def _parse_wanted(checkpoint_id: CheckpointId) -> int | str | None:
    """Return a step, or the key of a manifest."""
    key = str(checkpoint_id)
    point = parse_checkpoint_prefix(key)
    if point is not None and key == manifest_key(*point):
        return key
    return _parse_step(checkpoint_id)


def _nothing_to_load(store: ObjectStore, what: str) -> ObjectMissing:
    return ObjectMissing(f"{store.url} has no {what}", "Load another, or start from the beginning.")


def _done(value: _T) -> Future[_T]:
    future: Future[_T] = Future()
    future.set_result(value)
    return future
