"""What training needs of a GPU's memory, before anything is launched.

An estimate from the number of parameters alone: the state that FSDP shards, what is gathered of it
at a time, activations and logits. It leaves out what depends on the allocator, hence `_RESERVED`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.errors import SpecError
from orchestrator.spec import RunSpec
from train.config import KEPT_BYTES, ActivationCheckpointing, Precision, Sharding

# GB of one GPU by SkyPilot's names.
GPU_BYTES = {
    "A100": 40e9,
    "A100-80GB": 80e9,
    "H100": 80e9,
    "H200": 141e9,
    "L4": 24e9,
    "A10G": 24e9,
    "V100": 16e9,
    "V100-32GB": 32e9,
}
# fp32 weight and gradient, and AdamW's two moments.
_STATE_BYTES = 16
# CUDA's context, NCCL's buffers, fragmentation.
_RESERVED = 4e9
# Llama's. Later models have four to eight times as many, which adds a few GB of logits.
_VOCABULARY = 32_000
# With width = 128 x depth, those of the Llamas from 7B to 65B come out within 9 and 14 %.
_WIDTH_PER_LAYER = 128
# Predictions whose logits are there at a time (train/loss.py), in fp32.
_LOGIT_CHUNK = 512
_MAX_NODES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes that one GPU needs, by what needs them, and has."""

    state: int
    gathered: int
    activations: int
    logits: int
    reserved: int
    available: int

    @property
    def needed(self) -> int:
        """Return the sum of what is needed."""
        return self.state + self.gathered + self.activations + self.logits + self.reserved


def estimate_memory(spec: RunSpec) -> MemoryEstimate | None:
    """Return the estimate, None where the model's size or the accelerator is unknown.

    Automatic activation checkpointing is taken for the first choice that fits, else for the last.
    """
    num_parameters = parameters_from_name(spec.model.base)
    kind, _, per_node = spec.nodes.accelerators.partition(":")
    if num_parameters is None or kind not in GPU_BYTES:
        return None
    num_shards = int(per_node)
    if spec.train.sharding is Sharding.FULL:
        num_shards *= spec.nodes.count
    chosen = spec.train.activation_checkpointing
    choices = list(KEPT_BYTES) if chosen is ActivationCheckpointing.AUTO else [chosen]
    for choice in choices:
        estimate = _estimate(spec, num_parameters, kind, num_shards, choice)
        if estimate.needed <= estimate.available:
            break
    return estimate


def require_memory(spec: RunSpec) -> MemoryEstimate | None:
    """Return the estimate; raise SpecError, saying what would fit, if the model does not."""
    estimate = estimate_memory(spec)
    if estimate is None or estimate.needed <= estimate.available:
        return estimate
    gpus = f"{spec.nodes.count} x {spec.nodes.accelerators}"
    raise SpecError(
        f"{spec.model.base} needs about {estimate.needed / 1e9:.0f} GB on each GPU of {gpus}, "
        f"which has {estimate.available / 1e9:.0f}.",
        _what_would_fit(spec),
    )


def parameters_from_name(base: str) -> float | None:
    """Return the number of parameters that a model's name tells, as in llama-13b."""
    match = re.search(r"(?<![\dx.])(\d+(?:\.\d+)?)b\b", base.rpartition("/")[2].lower())
    return float(match[1]) * 1e9 if match else None


def _estimate(
    spec: RunSpec,
    num_parameters: float,
    kind: str,
    num_shards: int,
    choice: ActivationCheckpointing,
) -> MemoryEstimate:
    # Of N = 12 x layers x width^2 (attention 4, MLP 8) with width = 128 x layers.
    width = (num_parameters * _WIDTH_PER_LAYER / 12) ** (1 / 3)
    num_layers = width / _WIDTH_PER_LAYER
    num_tokens = spec.train.micro_batch * spec.model.max_length
    scale = 1 if spec.train.precision is Precision.BF16 else 2
    # What is kept of each layer, and one that is made again.
    layer_bytes = KEPT_BYTES[choice] * num_layers + KEPT_BYTES[ActivationCheckpointing.NONE]
    activations = layer_bytes * num_tokens * width
    return MemoryEstimate(
        state=int(_STATE_BYTES * num_parameters / num_shards),
        # Two layers, for the next one is fetched ahead; embeddings and head all the time.
        gathered=int(2 * scale * (2 * 12 * width**2 + 2 * _VOCABULARY * width)),
        activations=int(scale * activations),
        # And the head's gradient, summed up in fp32.
        logits=int(4 * _VOCABULARY * (_LOGIT_CHUNK + width)),
        reserved=int(_RESERVED),
        available=int(GPU_BYTES[kind]),
    )


def _what_would_fit(spec: RunSpec) -> str:
    """Name the smallest changes that help, each by itself."""
    found = []
    chosen = spec.train.activation_checkpointing
    can_drop = chosen in (ActivationCheckpointing.NONE, ActivationCheckpointing.SELECTIVE)
    full = {"activation_checkpointing": ActivationCheckpointing.FULL}
    if can_drop and _fits(spec, train=full):
        found.append("train.activation_checkpointing: full")
    if spec.train.micro_batch > 1 and _fits(spec, train={"micro_batch": 1}):
        found.append("train.micro_batch: 1")
    sharded = {"sharding": Sharding.FULL}
    for count in range(spec.nodes.count, _MAX_NODES + 1):
        if _fits(spec, nodes={"count": count}, train=sharded):
            found.append(f"nodes.count: {count} with train.sharding: full")
            break
    per_node = spec.nodes.accelerators.partition(":")[2]
    kinds = [k for k in GPU_BYTES if _fits(spec, nodes={"accelerators": f"{k}:{per_node}"})]
    found += [f"nodes.accelerators: {kind}:{per_node}" for kind in kinds]
    if not found:
        return "Choose a smaller model, or a shorter model.max_length."
    return f"What would fit: {', or '.join(found)}."


def _fits(spec: RunSpec, **changes: Mapping[str, object]) -> bool:
    changed = spec.model_copy(
        update={
            section: getattr(spec, section).model_copy(update=update)
            for section, update in changes.items()
        }
    )
    estimate = estimate_memory(changed)
    return estimate is not None and estimate.needed <= estimate.available
