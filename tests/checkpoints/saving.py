"""A whole save in this process, by the uploader's own functions: no process to start, any store."""

from datetime import datetime, timezone

from checkpoints.fence import claim_attempt
from checkpoints.layout import CHECKPOINTS, parse_checkpoint_prefix, shard_key
from checkpoints.messages import Commit, Upload
from checkpoints.places import Places, only
from checkpoints.staging import SlotPlanner, StagingBuffer
from checkpoints.uploader import commit_parts, upload_staged

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def read_range(store, key, start, length):
    data = bytearray(length)
    store.read_into(key, start, [memoryview(data)])
    return bytes(data)


def stored_points(places):
    """Return every checkpoint that has an object in some store, complete or not."""
    return {parse_checkpoint_prefix(entry.key) for _, entry in places.look(CHECKPOINTS).found}


def claim(store):
    return claim_attempt(store, claimed_by="a", claimed_at=NOW, world_size=1, offer={}).attempt


def save_step(places, attempt, step, tensors, *, local_tensors=None, retention=None, at=NOW):
    places = places if isinstance(places, Places) else only(places)
    slots = SlotPlanner(rank=0).plan(tensors, local_tensors or {})
    memory = StagingBuffer(sum(slot.length for slot, _ in slots), is_pinned=False)
    memory.copy(slots)
    request = Upload(key=shard_key(step, attempt, 0, 1), slots=tuple(slot for slot, _ in slots))
    part = upload_staged(places.objects, request, memory.view())
    memory.close()
    commit = Commit(
        run="r",
        attempt=attempt,
        step=step,
        world_size=1,
        created_at=at,
        state={"step": step},
        retention=retention,
    )
    return commit_parts(places, commit, [part])
