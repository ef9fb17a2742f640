"""A sharded model with optimizer state of a given size, whose every value can be computed again.

A save is told from the one before by its values: each is the seeded one times a power of two, which
is exact in binary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from checkpoints.tensors import local_rows
from train.config import TrainOptions
from train.optimizer import build_optimizer
from train.state import named_tensors

_NUM_LAYERS = 16
# Four attention and three MLP matrices of a Llama layer, in units of hidden x hidden.
_SQUARES_PER_LAYER = 12
# fp32 weight and both moments of AdamW.
_BYTES_PER_PARAMETER = 12


def build(state_bytes: int) -> dict[str, Tensor]:
    """Return the tensors that the trainer would save, sharded over all ranks and touched."""
    num_parameters = state_bytes / _BYTES_PER_PARAMETER
    half_hidden = math.sqrt(num_parameters / (_NUM_LAYERS * _SQUARES_PER_LAYER)) / 2
    # On meta, so that no whole model leaves its mark on the memory that is measured.
    with torch.device("meta"):
        model = nn.Sequential(*(_layer(2 * round(half_hidden)) for _ in range(_NUM_LAYERS)))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    tensors = named_tensors(model, build_optimizer(model, TrainOptions()))
    for name, tensor in tensors.items():
        local_rows(name, tensor).local.fill_(-1.0)
    return tensors


def num_local_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes that this rank holds."""
    return sum(local_rows(name, tensor).local.nbytes for name, tensor in tensors.items())


def fill(tensors: Mapping[str, Tensor]) -> None:
    """Give every tensor the values that no change has touched yet."""
    for number, (name, tensor) in enumerate(tensors.items()):
        rows = local_rows(name, tensor)
        rows.local.copy_(_own(_values(number, tensor), rows.first, rows.local))


def change(tensors: Mapping[str, Tensor]) -> None:
    """Change every value, as an optimizer step does."""
    for name, tensor in tensors.items():
        local_rows(name, tensor).local.mul_(2)


def check(tensors: Mapping[str, Tensor], num_changes: int) -> None:
    """Raise ValueError unless every value is the filled one after `num_changes` changes."""
    for number, (name, tensor) in enumerate(tensors.items()):
        rows = local_rows(name, tensor)
        expected = _values(number, tensor) * 2.0**num_changes
        if not torch.equal(rows.local, _own(expected, rows.first, rows.local)):
            raise ValueError(f"{name} was not loaded as it was saved")


def _layer(hidden: int) -> nn.Sequential:
    wide = 8 * hidden // 3
    shapes = [*[(hidden, hidden)] * 4, *[(hidden, wide)] * 2, (wide, hidden)]
    matrices = [nn.Linear(*shape, bias=False) for shape in shapes]
    return nn.Sequential(nn.RMSNorm(hidden), *matrices[:4], nn.RMSNorm(hidden), *matrices[4:])


def _values(number: int, tensor: Tensor) -> Tensor:
    return torch.rand(tensor.shape, generator=torch.Generator().manual_seed(number))


def _own(whole: Tensor, first: int, local: Tensor) -> Tensor:
    return whole[first : first + local.shape[0]] if local.dim() else whole
