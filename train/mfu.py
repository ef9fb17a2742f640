"""Model FLOPs utilization: what a step needs of what the GPU could do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Dense bf16 TFLOP/s by words of the name that CUDA gives; the first that matches counts.
# Source: NVIDIA's data sheets, whose larger figures are with sparsity.
_PEAK_TFLOPS = (
    ("B200", 2250.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10G", 70.0),
    ("A10", 125.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """N parameters, and layers L of width d."""

    num_parameters: int
    num_layers: int
    width: int


def peak_flops(gpu_name: str) -> float | None:
    """Return the GPU's dense bf16 FLOP/s, None if its name says nothing to us."""
    words = set(gpu_name.replace("-", " ").split())  # NVIDIA A100-SXM4-80GB
    return next((tera * 1e12 for part, tera in _PEAK_TFLOPS if set(part.split()) <= words), None)


def flops_per_token(size: ModelSize, length: float) -> float:
    """Return 6N + 12 L d s, forward and backward, nothing computed twice.

    s is the mean over tokens of the length of the sample that a token is in: attention reaches no
    further, packed or not. Source: PaLM, arXiv 2204.02311, appendix B.
    """
    return 6.0 * size.num_parameters + 12.0 * size.num_layers * size.width * length


def mean_length(lengths: Iterable[int]) -> float:
    """Return s for samples of these lengths."""
    lengths = list(lengths)
    return sum(length**2 for length in lengths) / sum(lengths)
