"""AdamW whose state exists from the start, and a learning rate that is a pure function of the step.

State that a resumed optimizer would create lazily is silently not restored; here there is none.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from typing_extensions import assert_never

from train.config import Schedule, TrainOptions

# Those of the Vicuna recipe, which are PyTorch's own.
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


def build_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    """Return AdamW with all its moments at zero."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=options.learning_rate,
        betas=_BETAS,
        eps=_EPSILON,
        weight_decay=options.weight_decay,
        fused=True,
    )
    for parameter in model.parameters():
        # What AdamW._init_group would create at the first step.
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    return optimizer


def learning_rate(options: TrainOptions, step: int, num_steps: int) -> float:
    """Return the learning rate of a step, counted from 0.

    Linear warm-up from 0, as transformers' get_cosine_schedule_with_warmup, but a step ahead: the
    first update is not wasted on a learning rate of 0.
    """
    num_warmup = math.ceil(options.warmup_fraction * num_steps)
    if step < num_warmup:
        return options.learning_rate * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    match options.schedule:
        case Schedule.COSINE:
            return options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        case Schedule.LINEAR:
            return options.learning_rate * (1 - progress)
        case Schedule.CONSTANT:
            return options.learning_rate
        case _:
            assert_never(options.schedule)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use `value` from the next update on."""
    for group in optimizer.param_groups:
        group["lr"] = value


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Scale the gradients down to the global norm `max_norm`; return the norm that they had."""
    parameters = list(model.parameters())
    total = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(total, DTensor):
        total = total.full_tensor()
    norm = float(total.item())
    if math.isfinite(norm):
        clip_grads_with_norm_(parameters, max_norm, total)
    return norm
