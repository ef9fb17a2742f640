"""The order of the data: a pure function of seed, epoch and position, whatever the world size.

Positions count samples over the whole run; step s (from 0) takes s * global_batch onwards, so a
batch at the end of an epoch goes on in the next one and every epoch shows each sample once.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def sample_index(seed: int, epoch: int, position: int, num_samples: int) -> int:
    """Return the sample at `position` (0 to num_samples - 1) of an epoch."""
    return int(_permutation(seed, epoch, num_samples)[position])


def step_samples(seed: int, step: int, global_batch: int, num_samples: int) -> list[int]:
    """Return the samples of a step (from 0), in the order in which ranks take turns."""
    first = step * global_batch
    return [
        sample_index(seed, position // num_samples, position % num_samples, num_samples)
        for position in range(first, first + global_batch)
    ]


def split_eval(seed: int, num_conversations: int, fraction: float) -> frozenset[int]:
    """Choose the conversations to evaluate on: at least one if any are asked for, never all."""
    if fraction == 0:
        return frozenset()
    num_eval = min(max(1, round(fraction * num_conversations)), num_conversations - 1)
    # Epoch -1 does not exist: the choice is independent of every epoch's order.
    return frozenset(_permutation(seed, -1, num_conversations)[:num_eval].tolist())


# A batch touches two epochs at most.
@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    # numpy keeps the raw bits of Philox stable over versions, but not Generator.permutation.
    bits = np.random.Philox(np.random.SeedSequence((seed, epoch + 1))).random_raw(num_samples)
    return np.argsort(bits, kind="stable")
