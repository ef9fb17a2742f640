"""Attention within each sample of a row, by PyTorch's scaled dot product.

transformers' own would build a mask of T x T over the row and compute all of it; this computes the
samples one by one, as flash attention does with the same bounds. It is registered under a name for
which transformers makes no mask.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import AttentionInterface

from train.errors import ModelInvalid

NAME = "sdpa_per_sample"


def register() -> None:
    """Make the name known to transformers."""
    # Not compiled: the number of samples changes from row to row.
    AttentionInterface.register(NAME, torch.compiler.disable(_attend))  # type: ignore[no-untyped-call]


def _attend(
    module: nn.Module,
    query_1HTE: torch.Tensor,
    key_1GTE: torch.Tensor,
    value_1GTE: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,  # noqa: ANN401  # whatever else a model hands to its attention
) -> tuple[torch.Tensor, None]:
    """Return [1, T, H, E] for H heads of width E, G of them with keys of their own."""
    bounds = kwargs.get("cu_seq_lens_q")
    if bounds is None or attention_mask is not None or kwargs.get("softcap") is not None:
        raise ModelInvalid(
            f"{type(module).__name__} wants more of its attention than sdpa does here.",
            "Set model.attention: eager.",
        )
    window = kwargs.get("sliding_window")
    dropout = dropout if module.training else 0.0
    lengths = bounds.diff().tolist()
    parts = [
        F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=_window_mask(query.shape[2], window, query.device),
            dropout_p=dropout,
            is_causal=window is None or query.shape[2] <= window,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for query, key, value in zip(
            torch.split(query_1HTE, lengths, dim=2),
            torch.split(key_1GTE, lengths, dim=2),
            torch.split(value_1GTE, lengths, dim=2),
            strict=True,
        )
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return which keys each query sees, None where it is all before it."""
    if window is None or length <= window:
        return None
    offsets = torch.arange(length, device=device)
    distance = offsets[:, None] - offsets[None, :]
    return (distance >= 0) & (distance < window)
