"""Activation checkpointing: which activations the backward pass finds, and which it makes again."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from train.config import KEPT_BYTES, ActivationCheckpointing, Precision, TrainOptions
from train.errors import ModelInvalid

log = logging.getLogger(__name__)

# Versions 2 and 3, and 3 before it called its kernel through an operator in Python.
_FLASH_ATTENTION = (
    ("flash_attn", "_flash_attn_varlen_forward"),
    ("flash_attn_3", "_flash_attn_forward"),
    ("flash_attn_3", "fwd"),
)
# fp32 weights, gradients and both moments.
_STATE_BYTES = 16
# Of free memory: the rest is for what is gathered, logits, and fragmentation.
_USABLE = 0.8


def checkpoint_activations(
    model: nn.Module,
    options: TrainOptions,
    max_length: int,
    mesh: DeviceMesh,
    device: torch.device,
) -> None:
    """Make the model's layers drop what the options say; raises ModelInvalid if it cannot."""
    choice = options.activation_checkpointing
    if choice is ActivationCheckpointing.AUTO:
        choice = _affordable(model, options, max_length, mesh, device)
    if choice is ActivationCheckpointing.NONE:
        return
    arguments: dict[str, Any] = {"use_reentrant": False}
    if choice is ActivationCheckpointing.SELECTIVE:
        # Anew for each layer: the policy counts a layer's products.
        arguments["context_fn"] = _selective_contexts
    try:
        model.gradient_checkpointing_enable(arguments)  # type: ignore[operator]
    except ValueError as error:
        raise ModelInvalid(f"{error}", "Set train.activation_checkpointing: none.") from error


def _selective_contexts() -> object:
    return create_selective_checkpoint_contexts(_policy())  # type: ignore[no-untyped-call]


def _affordable(
    model: nn.Module,
    options: TrainOptions,
    max_length: int,
    mesh: DeviceMesh,
    device: torch.device,
) -> ActivationCheckpointing:
    if device.type != "cuda":
        return ActivationCheckpointing.NONE
    config: Any = model.config
    num_tokens = options.micro_batch * max_length
    scale = 1 if options.precision is Precision.BF16 else 2
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    memory = torch.tensor(torch.cuda.get_device_properties(device).total_memory, device=device)
    # All ranks choose alike: by the smallest GPU among them.
    dist.all_reduce(memory, op=dist.ReduceOp.MIN)
    free = memory.item() * _USABLE
    free -= _STATE_BYTES * num_parameters / mesh.size(mesh.ndim - 1)
    units = scale * num_tokens * config.hidden_size * config.num_hidden_layers
    fitting = (choice for choice, bytes_ in KEPT_BYTES.items() if bytes_ * units <= free)
    choice = next(fitting, ActivationCheckpointing.FULL)
    log.info("activation checkpointing: %s", choice.value)
    return choice


def _policy() -> Callable[..., CheckpointPolicy]:
    """Return a policy that keeps attention and every second matrix product of a layer.

    Source: torchtitan's selective checkpointing per operation.
    """
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    }
    for library, name in _FLASH_ATTENTION:
        with suppress(AttributeError):  # unless it is imported
            attention.add(getattr(getattr(torch.ops, library), name).default)
    products = {aten.mm.default, aten.addmm.default}
    num_products = itertools.count()

    def decide(_: object, operation: object, *__: object, **___: object) -> CheckpointPolicy:
        if operation in attention or (operation in products and next(num_products) % 2 == 0):
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return decide
