"""The log of one attempt as its nodes uploaded it: the end of each, or all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from checkpoints.layout import log_key, parse_log_key
from checkpoints.store import ObjectStore
from orchestrator.ledger.fetching import fetch
from orchestrator.redact import redact

# Of each node: a few hundred lines, which a browser lays out at once.
_MOST_BYTES = 64_000
# And from so many uploads: an hour and a half of a cloud node's.
_MOST_PIECES = 256
_AT_ONCE = 64


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
        for start in range(0, len(keys), _AT_ONCE):
            text = _read(store, keys[start : start + _AT_ONCE]).decode(errors="replace")
            yield redact(text).encode()


def _pieces(store: ObjectStore, attempt: int) -> dict[int, list[str]]:
    pieces: dict[int, list[str]] = {}
    for entry in store.list(log_key(attempt, "")):
        source = parse_log_key(entry.key)
        if source is not None:
            pieces.setdefault(source[1], []).append(entry.key)
    return pieces


def _end_of(store: ObjectStore, node: int, keys: list[str]) -> NodeLog:
    """Read pieces from the last one on until there is enough; most are a few lines."""
    end, first = b"", len(keys)
    while first > 0 and len(end) < _MOST_BYTES and len(keys) - first < _MOST_PIECES:
        start = max(0, first - _AT_ONCE)
        end = _read(store, keys[start:first]) + end
        first = start
    is_cut = first > 0 or len(end) > _MOST_BYTES
    text = redact(end[-_MOST_BYTES:].decode(errors="replace"))
    return NodeLog(node=node, text=text, is_cut=is_cut)


def _read(store: ObjectStore, keys: list[str]) -> bytes:
    """Return the pieces one behind the other; what is deleted meanwhile is left out."""
    return b"".join(data for _, data in fetch(store, keys) if data is not None)
