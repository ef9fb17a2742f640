"""What a tensor is to a store: its dtype's name, the rows that a rank holds, and their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from checkpoints.errors import RecordInvalid

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of a tensor that this rank holds, and which of their holders writes them."""

    local: Tensor
    first: int
    replica: int = 0
    num_replicas: int = 1


def local_rows(name: str, tensor: Tensor) -> Rows:
    """Return this rank's rows of a tensor; raise RecordInvalid unless it is split along dim 0.

    A plain tensor counts as one replica: its holders do not know of each other.
    """
    if not isinstance(tensor, DTensor):
        return Rows(local=tensor.detach(), first=0)
    mesh, first, replica, num_replicas = tensor.device_mesh, 0, 0, 1
    num_rows = tensor.shape[0] if tensor.dim() else 1
    for mesh_dim, placement in enumerate(tensor.placements):
        position = mesh.get_local_rank(mesh_dim)
        if placement.is_replicate():
            replica = replica * mesh.size(mesh_dim) + position
            num_replicas *= mesh.size(mesh_dim)
        elif type(placement) is Shard and placement.dim == 0:
            num_rows, offset = Shard.local_shard_size_and_offset(
                num_rows, mesh.size(mesh_dim), position
            )
            first += offset
        else:
            raise RecordInvalid(
                f"{name} is placed as {placement}", "Shard it along its first dimension only."
            )
    local = cast(DTensor, tensor.detach()).to_local()
    return Rows(local=local, first=first, replica=replica, num_replicas=num_replicas)


def dtype_name(name: str, tensor: Tensor) -> str:
    """Return how the store calls the dtype of tensor `name`; raise RecordInvalid if it does not."""
    if tensor.dtype not in DTYPE_NAMES:
        raise RecordInvalid(f"{name} has dtype {tensor.dtype}", "Save it as a supported dtype.")
    return DTYPE_NAMES[tensor.dtype]


def flat_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a contiguous tensor, shape (num_bytes,), without copying."""
    return tensor.detach().reshape(-1).view(torch.uint8)
