"""How fast this node reaches its store: a few MB up and down, before the start.

A notice leaves 30 seconds to two minutes. Where a checkpoint takes longer than that, what was done
since the last one is lost at every preemption, and the user should hear of it.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from checkpoints.errors import StoreError
from checkpoints.store import ObjectStore
from orchestrator.ledger.fold import RunState
from orchestrator.memory import parameters_from_name

_log = logging.getLogger(__name__)
# As many streams as carry most of a line's rate, each long enough to get up to speed.
_NUM_STREAMS = 4
_STREAM_BYTES = 2 << 20
# fp32 master weight and AdamW's two moments.
_BYTES_PER_PARAMETER = 12
# What the clouds announce; those that announce nothing are held to the shortest.
_NOTICES = {"aws": timedelta(minutes=2)}
_SHORTEST_NOTICE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Bytes per second, in both directions, by a short measurement."""

    up: float
    down: float

    def __str__(self) -> str:
        return f"{self.up / 1e6:.0f} MB/s up, {self.down / 1e6:.0f} MB/s down"


def measure(store: ObjectStore) -> Speed:
    """Write a few objects and read them back; they are removed again. Raises StoreError."""
    prefix = f"probes/{secrets.token_hex(8)}"
    keys = [f"{prefix}/{number}" for number in range(_NUM_STREAMS)]
    payload = os.urandom(_STREAM_BYTES)
    try:
        with ThreadPoolExecutor(_NUM_STREAMS) as pool:
            up = _rate(lambda: list(pool.map(lambda key: store.put(key, payload), keys)))
            down = _rate(lambda: list(pool.map(store.get, keys)))
    finally:
        with suppress(StoreError):
            store.delete(keys)
    return Speed(up=up, down=down)


def warning(speed: Speed, state: RunState, cloud: str) -> str | None:
    """Return what to tell the user where a checkpoint does not fit into a notice."""
    num_bytes = checkpoint_bytes(state)
    if num_bytes is None:
        return None
    takes = timedelta(seconds=num_bytes / state.spec.nodes.count / speed.up)
    notice = _NOTICES.get(cloud, _SHORTEST_NOTICE)
    if takes <= notice:
        return None
    return (
        f"a checkpoint of {num_bytes / 1e9:.1f} GB takes about {takes.total_seconds():.0f} s from "
        f"here, more than the {notice.total_seconds():.0f} s of a notice: "
        "choose a store near the nodes (checkpoints.stores)"
    )


def checkpoint_bytes(state: RunState) -> int | None:
    """Return the size of the last checkpoint; before the first, by what the model's name tells."""
    if state.commits:
        return state.commits[-1].num_bytes
    num_parameters = parameters_from_name(state.spec.model.base)
    return None if num_parameters is None else int(num_parameters * _BYTES_PER_PARAMETER)


def _rate(transfer: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    transfer()
    return _NUM_STREAMS * _STREAM_BYTES / max(time.perf_counter() - started_s, 1e-6)
