"""Find out, before the first step, whether a model keeps the samples of a row apart.

Every attention that is known here does. But some models make their own masks, or carry a state from
token to token (linear attention), and would let a sample see its neighbour without a word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from train.batch import to_micro_batch
from train.config import Precision
from train.data.dataset import Segment
from train.errors import ModelInvalid

_LENGTH = 16
# Of one shape, both rows are computed alike to the bit; a neighbour that is seen changes the loss
# by percents (1 to 6 for those of transformers that let it be).
_TOLERANCE = {Precision.FP32: 1e-5, Precision.BF16: 1e-3}


@torch.no_grad()
def require_samples_apart(
    model: Any,  # noqa: ANN401  # PreTrainedModel
    device: torch.device,
    precision: Precision,
) -> None:
    """Raise ModelInvalid if a sample's loss depends on what stands before it in its row.

    All ranks call it alike; it leaves the model in training.
    """
    generator = np.random.default_rng(0)
    size = model.config.get_text_config().vocab_size
    tokens = generator.integers(0, size, (3, _LENGTH)).astype(np.int32)
    sample = Segment(tokens=tokens[0], trained=np.ones(_LENGTH, dtype=np.uint8))
    neighbours = [
        Segment(tokens=one, trained=np.zeros(_LENGTH, dtype=np.uint8)) for one in tokens[1:]
    ]
    model.eval()
    first, second = (
        float(model.loss_sum(to_micro_batch([one, sample], is_last=True).to(device)))
        for one in neighbours
    )
    model.train()
    if not abs(first - second) <= _TOLERANCE[precision] * abs(first):
        raise ModelInvalid(
            f"{type(model).__name__} lets a sample see what stands before it in its row.",
            "Set data.packing: false and train.micro_batch: 1.",
        )
