"""The node's uploader: maps what its ranks staged, writes their objects, and commits for rank 0.

A process of its own, so that no upload competes with the training for the interpreter; torch-free.
It ends with the process that started it: python -m checkpoints.uploader DESCRIPTOR RECORDS OBJECTS
[OTHER...], with the URLs of the stores that `places` tells apart.
"""

from __future__ import annotations

import logging
import mmap
import os
import socket
import struct
import sys
import threading
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle

from pydantic import TypeAdapter

from checkpoints import messages
from checkpoints.errors import ObjectMissing, RecordInvalid, SaveFailed
from checkpoints.fence import commit, parent_of
from checkpoints.inspect import read_manifest
from checkpoints.layout import checkpoint_prefix, manifest_key
from checkpoints.manifest import Manifest
from checkpoints.messages import Attach, Commit, Committed, Refusal, Upload, Uploaded, send
from checkpoints.places import Places, open_places
from checkpoints.rank_object import Part, Staged, merge, upload
from checkpoints.retention import prune
from checkpoints.store import ObjectStore

log = logging.getLogger(__name__)

_REQUEST: TypeAdapter[Attach | Upload | Commit] = TypeAdapter(messages.Request)
_PEER_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


def main() -> None:
    """Serve every rank that connects, until the starter's end of standard input is closed."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="uploader: %(message)s")
    listener = socket.socket(fileno=int(sys.argv[1]))
    serve(listener, open_places(sys.argv[2], sys.argv[3], sys.argv[4:]))


def serve(listener: socket.socket, places: Places) -> None:
    """Serve the ranks that connect to `listener`, each in a thread."""
    threading.Thread(target=_accept, args=(listener, places), daemon=True).start()
    while sys.stdin.buffer.read(1):
        pass
    # Not sys.exit: an upload to nobody's use may hang in a thread for a minute.
    os._exit(0)


def _accept(listener: socket.socket, places: Places) -> None:
    while True:
        peer, _ = listener.accept()
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        if _PEER_CREDENTIALS.unpack(credentials)[1] != os.getuid():
            peer.close()  # an abstract socket has no file mode
            continue
        rank = _Rank(Connection(peer.detach()), places)
        threading.Thread(target=rank.serve, daemon=True).start()


class _Rank:
    """One rank's connection and the memory that it staged."""

    def __init__(self, connection: Connection, places: Places) -> None:
        self._connection = connection
        self._places = places
        self._memory = memoryview(b"")

    def serve(self) -> None:
        """Answer requests until the rank is gone."""
        try:
            while True:
                request = _REQUEST.validate_json(self._connection.recv_bytes())
                if isinstance(request, Attach):
                    self._attach(request)
                else:
                    send(self._connection, self._answer(request))
        except (EOFError, OSError):
            return

    def _attach(self, request: Attach) -> None:
        descriptor = recv_handle(self._connection)
        try:
            mapping = mmap.mmap(descriptor, request.num_bytes, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self._memory = memoryview(mapping)

    def _answer(self, request: Upload | Commit) -> Uploaded | Committed | Refusal:
        try:
            if isinstance(request, Upload):
                return Uploaded(part=upload_staged(self._places.objects, request, self._memory))
            parts = [
                Part.model_validate_json(self._connection.recv_bytes())
                for _ in range(request.world_size)
            ]
            return commit_parts(self._places, request, parts)
        except Exception as error:  # the rank waits for this process's word
            log.warning("request %s failed", request.kind, exc_info=error)
            return Refusal.of(error)


def upload_staged(store: ObjectStore, request: Upload, memory: memoryview) -> Part:
    """Write what a rank staged in `memory` as one object and return its records."""
    staged = [
        Staged(
            name=slot.name,
            dtype=slot.dtype,
            shape=slot.shape,
            first=slot.first,
            rows_shape=slot.rows_shape,
            memory=memory[slot.start : slot.start + slot.length],
        )
        for slot in request.slots
    ]
    return upload(store, request.key, staged)


def commit_parts(places: Places, request: Commit, parts: list[Part]) -> Committed:
    """Make the ranks' parts a checkpoint, make it the last one, and prune; raise Fenced.

    Raises SaveFailed or RecordInvalid if the parts are not all there or do not fit together.
    """
    key = manifest_key(request.step, request.attempt)
    parent = parent_of(places.records, run=request.run, attempt=request.attempt, key=key)
    manifest = Manifest(
        run=request.run,
        attempt=request.attempt,
        step=request.step,
        parent=parent,
        world_size=request.world_size,
        created_at=request.created_at,
        store=places.objects_url,
        objects=tuple(part.object for part in parts),
        tensors=merge(parts),
        state=request.state,
    )
    _check_objects(places.objects, manifest)
    manifest = _as_stored(places.records, manifest)
    commit(places.records, manifest)
    at = datetime.now(timezone.utc)
    return Committed(
        step=manifest.step,
        manifest=manifest.key,
        num_bytes=manifest.num_bytes,
        num_objects=len(manifest.objects),
        at=at,
        deleted=_prune(places, request),
    )


def _as_stored(store: ObjectStore, manifest: Manifest) -> Manifest:
    """Return what an earlier try to commit this very step left, which only says another time.

    Its HEAD did not move, or moved unheard of; taken for another's it would fence its own attempt.
    """
    try:
        stored = read_manifest(store, manifest.key)
    except (ObjectMissing, RecordInvalid):
        return manifest
    is_same = stored.model_copy(update={"created_at": manifest.created_at}) == manifest
    return stored if is_same else manifest


def _check_objects(store: ObjectStore, manifest: Manifest) -> None:
    """Raise SaveFailed unless every object of the manifest is stored with its size."""
    prefix = checkpoint_prefix(manifest.step, manifest.attempt) + "/"
    sizes = {entry.key: entry.size for entry in store.list(prefix)}
    for entry in manifest.objects:
        if sizes.get(entry.key) != entry.size:
            raise SaveFailed(
                f"{entry.key} has {sizes.get(entry.key)} bytes instead of {entry.size}",
                "Save again; if it recurs, the store loses writes.",
            )


def _prune(places: Places, request: Commit) -> tuple[str, ...]:
    if request.retention is None:
        return ()
    try:
        return tuple(
            prune(
                places,
                keep_last=request.retention.keep_last,
                keep_every=request.retention.keep_every,
                keep_back=request.retention.keep_back,
                attempt=request.attempt,
            )
        )
    except Exception as error:
        # The checkpoint is committed whatever happens here. Old ones cost a little money until the
        # next try; and if this attempt was fenced, the next commit says so.
        log.warning("old checkpoints were not pruned", exc_info=error)
        return ()


if __name__ == "__main__":
    main()
