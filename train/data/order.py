"""The order of the data: a pure function of seed, epoch and position, whatever the world size.

Positions count sequences over the whole run; batch b (from 0) takes b * global_batch onwards, so
that one at the end of an epoch goes on in the next and every epoch shows each sequence once.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def sequence_index(seed: int, epoch: int, position: int, num_sequences: int) -> int:
    """Return the sequence at `position` (0 to num_sequences - 1) of an epoch."""
    return int(_permutation(seed, epoch, num_sequences)[position])


def batch_sequences(seed: int, batch: int, global_batch: int, num_sequences: int) -> list[int]:
    """Return the sequences of a batch (from 0), in the order in which ranks take turns."""
    first = batch * global_batch
    return [
        sequence_index(seed, position // num_sequences, position % num_sequences, num_sequences)
        for position in range(first, first + global_batch)
    ]


def split_eval(seed: int, num_conversations: int, fraction: float) -> frozenset[int]:
    """Choose the conversations to evaluate on: at least one if any are asked for, never all."""
    if fraction == 0:
        return frozenset()
    num_eval = min(max(1, round(fraction * num_conversations)), num_conversations - 1)
    # Epoch -1 does not exist: the choice is independent of every epoch's order.
    return frozenset(_permutation(seed, -1, num_conversations)[:num_eval].tolist())


def packing_order(seed: int, num_samples: int) -> list[int]:
    """Return the order in which samples are put into sequences; no epoch's and not the split's."""
    order: list[int] = _permutation(seed, 2**32, num_samples).tolist()
    return order


# A batch touches two epochs at most.
@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_items: int) -> NDArray[np.int64]:
    # numpy keeps the raw bits of Philox stable over versions, but not Generator.permutation.
    bits = np.random.Philox(np.random.SeedSequence((seed, epoch + 1))).random_raw(num_items)
    return np.argsort(bits, kind="stable")
