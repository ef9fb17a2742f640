"""Which sequences of a step a rank takes, and the micro-batches it makes of them.

Nothing here depends on the world size but the share: the sum over all ranks is always the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from train.data.dataset import Dataset, Segment

# Two tokens without a label, for a rank that has run out: FSDP needs its forward and backward.
_NOTHING = Segment(tokens=np.zeros(2, dtype=np.int32), trained=np.zeros(2, dtype=np.uint8))


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Samples one after another in one row of T tokens, without padding.

    `positions_1T` begin anew with each sample; sample n has the tokens from `bounds[n]` (int32) to
    `bounds[n + 1]`, `longest` at most. The N predictions that are trained are those after the
    tokens at `trained_N`, and should be `labels_N`.
    """

    tokens_1T: torch.Tensor
    positions_1T: torch.Tensor
    bounds: torch.Tensor
    longest: int
    trained_N: torch.Tensor
    labels_N: torch.Tensor
    is_last: bool

    def to(self, device: torch.device) -> MicroBatch:
        """Return the same on `device`, but for the bounds: not every attention wants them there."""
        if device.type == "cpu":
            return self
        return MicroBatch(
            tokens_1T=self.tokens_1T.to(device, non_blocking=True),
            positions_1T=self.positions_1T.to(device, non_blocking=True),
            bounds=self.bounds,
            longest=self.longest,
            trained_N=self.trained_N.to(device, non_blocking=True),
            labels_N=self.labels_N.to(device, non_blocking=True),
            is_last=self.is_last,
        )


def micro_batches(
    dataset: Dataset, sequences: Sequence[int], *, rank: int, world_size: int, size: int
) -> Iterator[MicroBatch]:
    """Yield rank's micro-batches; every rank yields the same number, if need be without a label."""
    mine = sequences[rank::world_size]
    largest_share = -(-len(sequences) // world_size)
    for start in range(0, largest_share, size):
        is_last = start + size >= largest_share
        segments = [one for index in mine[start : start + size] for one in dataset[index]]
        yield to_micro_batch(segments or [_NOTHING], is_last=is_last)


def to_micro_batch(segments: Sequence[Segment], *, is_last: bool) -> MicroBatch:
    """Put samples into one row; their first tokens are given, and predict the second ones."""
    lengths = [len(segment.tokens) for segment in segments]
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    tokens = np.concatenate([segment.tokens for segment in segments]).astype(np.int64)
    is_trained = np.concatenate([segment.trained for segment in segments]) != 0
    is_trained[bounds[:-1]] = False
    targets = np.flatnonzero(is_trained)
    positions = np.arange(len(tokens)) - np.repeat(bounds[:-1], lengths)
    return MicroBatch(
        tokens_1T=torch.from_numpy(tokens)[None],
        positions_1T=torch.from_numpy(positions)[None],
        bounds=torch.from_numpy(bounds.astype(np.int32)),
        longest=max(lengths),
        trained_N=torch.from_numpy(targets - 1),
        labels_N=torch.from_numpy(tokens[targets]),
        is_last=is_last,
    )
