"""Samples on disk: one safetensors file of flat arrays, read lazily, so that any size will do."""

from __future__ import annotations

import json
from collections.abc import Sequence
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


def write_dataset(path: Path, samples: Sequence[Sample]) -> None:
    """Write tokens int32, trained uint8, offsets int64[n+1]; conversation ids as metadata."""
    lengths = [len(sample.tokens) for sample in samples]
    arrays = {
        "tokens": np.array([t for sample in samples for t in sample.tokens], dtype=np.int32),
        "trained": np.array([t for sample in samples for t in sample.trained], dtype=np.uint8),
        "offsets": np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
    }
    # One metadata key only: safetensors writes several in the order of a randomised hash map.
    save_file(arrays, path, metadata={"ids": json.dumps([sample.id for sample in samples])})


class Dataset:
    """Random access to the samples of a file, which stays mapped."""

    def __init__(self, path: Path) -> None:
        try:
            file: Any = safe_open(str(path), framework="numpy")  # ships no types
            self._tokens = file.get_slice("tokens")
            self._trained = file.get_slice("trained")
            self._offsets: NDArray[np.int64] = file.get_tensor("offsets")
        except (OSError, SafetensorError) as error:
            raise DataInvalid(
                f"{path} is not prepared data: {error}.", "Run python -m train.data.prepare."
            ) from error

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        start, stop = int(self._offsets[index]), int(self._offsets[index + 1])
        return self._tokens[start:stop], self._trained[start:stop]
