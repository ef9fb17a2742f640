"""How well the hardware is used: model FLOPs utilization and memory."""

from __future__ import annotations

import resource
from typing import Any

import torch
from torch import nn

from train.data.dataset import Counts
from train.mfu import ModelSize, flops_per_token, peak_flops


class Throughput:
    """Turns the tokens and seconds of a step into a share of what the GPUs could have done."""

    def __init__(self, model: nn.Module, device: torch.device, world_size: int) -> None:
        config: Any = model.config
        heads = getattr(config, "num_attention_heads", 0) * (getattr(config, "head_dim", 0) or 0)
        self._size = ModelSize(
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            num_layers=config.num_hidden_layers,
            width=heads or config.hidden_size,
        )
        self._device = device
        peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._peak = None if peak is None else peak * world_size

    def mfu(self, counts: Counts, seconds: float) -> float | None:
        """Return the model FLOPs utilization, None on a device of unknown peak."""
        if self._peak is None or not seconds:
            return None
        per_token = flops_per_token(self._size, counts.sum_of_squares / counts.num_tokens)
        return per_token * counts.num_tokens / seconds / self._peak

    def peak_memory_bytes(self) -> int:
        """Return the most memory held so far: the GPU's, or this process's."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
