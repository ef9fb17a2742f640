"""Sequences on disk: one safetensors file of flat arrays, read lazily, so that any size will do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from train.data.samples import Sample
from train.errors import DataInvalid

TRAIN_NAME = "train.safetensors"
EVAL_NAME = "eval.safetensors"


def write_dataset(
    path: Path, samples: Sequence[Sample], sequences: Sequence[Sequence[int]]
) -> None:
    """Write samples, and which of them make up each sequence.

    tokens int32 and trained uint8 of all samples, offsets int64[samples + 1] into them, predictions
    int64[samples] (how many are trained), members int64 (samples of all sequences), bounds
    int64[sequences + 1] into members; conversation ids of the samples as metadata.
    """
    arrays = {
        "tokens": np.concatenate([sample.tokens for sample in samples]),
        "trained": np.concatenate([sample.trained for sample in samples]),
        "offsets": _bounds([len(sample.tokens) for sample in samples]),
        "predictions": np.array([sample.num_trained for sample in samples], dtype=np.int64),
        "members": np.array([index for one in sequences for index in one], dtype=np.int64),
        "bounds": _bounds([len(one) for one in sequences]),
    }
    # One metadata key only: safetensors writes several in the order of a randomised hash map.
    save_file(arrays, path, metadata={"ids": json.dumps([sample.id for sample in samples])})


def _bounds(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One sample within a sequence: tokens int32[S] and mask uint8[S]."""

    tokens: NDArray[np.int32]
    trained: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Tokens of some sequences, and those whose prediction is trained.

    `sum_of_squares` is that of the samples' lengths, to which attention's work is proportional.
    """

    num_tokens: int
    num_trained_tokens: int
    sum_of_squares: int


class Dataset:
    """Random access to the sequences of a file, which stays mapped."""

    def __init__(self, path: Path) -> None:
        try:
            file: Any = safe_open(str(path), framework="numpy")  # ships no types
            self._tokens = file.get_slice("tokens")
            self._trained = file.get_slice("trained")
            self._offsets: NDArray[np.int64] = file.get_tensor("offsets")
            self._predictions: NDArray[np.int64] = file.get_tensor("predictions")
            self._members: NDArray[np.int64] = file.get_tensor("members")
            self._bounds: NDArray[np.int64] = file.get_tensor("bounds")
        except (OSError, SafetensorError) as error:
            raise DataInvalid(
                f"{path} is not prepared data: {error}.", "Run python -m train.data.prepare."
            ) from error

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> list[Segment]:
        """Return the samples that make up a sequence; none attends to another."""
        members = self._members[self._bounds[index] : self._bounds[index + 1]]
        return [self._segment(int(member)) for member in members]

    @property
    def is_packed(self) -> bool:
        """Say whether a sequence holds more than one sample."""
        return len(self._members) > len(self)

    def count(self, sequences: Sequence[int]) -> Counts:
        """Count the tokens of sequences, without reading them."""
        bounds = [range(self._bounds[index], self._bounds[index + 1]) for index in sequences]
        members = self._members[[position for one in bounds for position in one]]
        lengths = self._offsets[members + 1] - self._offsets[members]
        return Counts(
            num_tokens=int(lengths.sum()),
            num_trained_tokens=int(self._predictions[members].sum()),
            sum_of_squares=int((lengths**2).sum()),
        )

    def _segment(self, sample: int) -> Segment:
        start, stop = int(self._offsets[sample]), int(self._offsets[sample + 1])
        return Segment(tokens=self._tokens[start:stop], trained=self._trained[start:stop])
