"""How well the hardware is used: model FLOPs utilization and memory."""

from __future__ import annotations

import resource
from typing import Any

import torch
from torch import nn

from train.data.dataset import Counts

# Dense bf16 FLOP/s by the makers' data sheets, by words of the name that CUDA gives.
_PEAK_FLOPS = (
    ({"A100"}, 312e12),
    ({"H100", "PCIe"}, 756e12),
    ({"H100"}, 989e12),
    ({"H200"}, 989e12),
    ({"L4"}, 121e12),
    ({"A10G"}, 70e12),
)


class Throughput:
    """Turns the tokens and seconds of a step into a share of what the GPUs could have done."""

    def __init__(self, model: nn.Module, device: torch.device, world_size: int) -> None:
        config: Any = model.config
        self._num_parameters = sum(parameter.numel() for parameter in model.parameters())
        width = getattr(config, "head_dim", None) or 0
        width *= getattr(config, "num_attention_heads", 0)
        self._attention: int = 12 * config.num_hidden_layers * (width or config.hidden_size)
        self._device = device
        peak = _peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._peak = None if peak is None else peak * world_size

    def mfu(self, counts: Counts, seconds: float) -> float | None:
        """Return the model FLOPs utilization, None on a device of unknown peak.

        (6 N + 12 L H Q s) FLOPs per token for N parameters, L layers, H heads of width Q and
        sequences of s tokens (Chowdhery et al. 2022, PaLM, appendix B): nothing for recomputation,
        and no half for the causal mask.
        """
        if self._peak is None or not seconds:
            return None
        flops = 6 * self._num_parameters * counts.num_tokens
        flops += self._attention * counts.sum_of_squares
        return float(flops / seconds / self._peak)

    def peak_memory_bytes(self) -> int:
        """Return the most memory held so far: the GPU's, or this process's."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _peak_flops(name: str) -> float | None:
    words = set(name.replace("-", " ").split())  # NVIDIA A100-SXM4-80GB
    return next((peak for kind, peak in _PEAK_FLOPS if kind <= words), None)
