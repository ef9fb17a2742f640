"""The log of one attempt as its nodes uploaded it: the end of each, or all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from checkpoints.errors import ObjectMissing
from checkpoints.layout import log_key, parse_log_key
from checkpoints.store import ObjectStore

# Of each node: a few hundred lines, which a browser lays out at once.
_MOST_BYTES = 64_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLog:
    """The last lines of one node's log; `is_cut` where there is more before them."""

    node: int
    text: str
    is_cut: bool


def last_lines(store: ObjectStore, attempt: int) -> list[NodeLog]:
    """Return the end of each node's log of an attempt, by node."""
    pieces = _pieces(store, attempt)
    return [_end_of(store, node, pieces[node]) for node in sorted(pieces)]


def whole_log(store: ObjectStore, attempt: int) -> Iterator[bytes]:
    """Yield all that an attempt's nodes wrote, node after node."""
    for node, keys in sorted(_pieces(store, attempt).items()):
        yield f"--- attempt {attempt}, node {node} ---\n".encode()
        for key in keys:
            yield _read(store, key)


def _pieces(store: ObjectStore, attempt: int) -> dict[int, list[str]]:
    pieces: dict[int, list[str]] = {}
    for entry in store.list(log_key(attempt, "")):
        source = parse_log_key(entry.key)
        if source is not None:
            pieces.setdefault(source[1], []).append(entry.key)
    return pieces


def _end_of(store: ObjectStore, node: int, keys: list[str]) -> NodeLog:
    end, first = b"", len(keys)
    while first > 0 and len(end) < _MOST_BYTES:
        first -= 1
        end = _read(store, keys[first]) + end
    is_cut = first > 0 or len(end) > _MOST_BYTES
    return NodeLog(node=node, text=end[-_MOST_BYTES:].decode(errors="replace"), is_cut=is_cut)


def _read(store: ObjectStore, key: str) -> bytes:
    try:
        return store.get(key).data
    except ObjectMissing:
        return b""  # deleted meanwhile, with its run
