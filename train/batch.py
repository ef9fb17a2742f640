"""Which samples of a step a rank takes, and the padded micro-batches it makes of them.

Nothing here depends on the world size but the share: the sum over all ranks is always the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from train.data.dataset import Dataset

IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """B sequences padded to the longest, of S tokens; labels are IGNORED where nothing is trained.

    A label stands where its token stands; whoever computes the loss shifts by one.
    """

    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    is_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Tokens of all samples of a step, over all ranks."""

    num_tokens: int
    num_trained_tokens: int


def count_tokens(dataset: Dataset, samples: Sequence[int]) -> Counts:
    """Count the samples' tokens, and those whose prediction is trained."""
    num_tokens = num_trained_tokens = 0
    for index in samples:
        tokens, trained = dataset[index]
        num_tokens += len(tokens)
        num_trained_tokens += int(trained[1:].sum())
    return Counts(num_tokens=num_tokens, num_trained_tokens=num_trained_tokens)


def micro_batches(
    dataset: Dataset, samples: Sequence[int], *, rank: int, world_size: int, size: int
) -> Iterator[MicroBatch]:
    """Yield rank's micro-batches; every rank yields the same number, if need be without a label."""
    mine = samples[rank::world_size]
    largest_share = -(-len(samples) // world_size)
    for start in range(0, largest_share, size):
        is_last = start + size >= largest_share
        yield _to_micro_batch(dataset, mine[start : start + size], is_last=is_last)


def _to_micro_batch(dataset: Dataset, samples: Sequence[int], *, is_last: bool) -> MicroBatch:
    pairs = [dataset[index] for index in samples]
    # Two tokens without a label where a rank has run out: FSDP needs its forward and backward.
    longest = max((len(tokens) for tokens, _ in pairs), default=2)
    tokens_BS = torch.zeros((max(1, len(pairs)), longest), dtype=torch.int64)
    labels_BS = torch.full_like(tokens_BS, IGNORED)
    for row, (tokens, trained) in enumerate(pairs):
        # Padding is on the right, where causal attention never looks back at it.
        tokens_S = torch.from_numpy(tokens).long()
        tokens_BS[row, : len(tokens)] = tokens_S
        labels_BS[row, : len(tokens)] = tokens_S.masked_fill(
            torch.from_numpy(trained) == 0, IGNORED
        )
    return MicroBatch(tokens_BS=tokens_BS, labels_BS=labels_BS, is_last=is_last)
