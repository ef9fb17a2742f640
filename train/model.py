"""Build the model and shard it with FSDP2: every decoder layer, then the rest.

New weights are drawn on every rank alike, under the run's seed. Weights that come from files never
exist in full anywhere: each rank reads its own rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from train import attention
from train.activations import checkpoint_activations
from train.config import Attention, ModelOptions, Precision, TrainOptions
from train.errors import ModelInvalid
from train.loss import add_loss

log = logging.getLogger(__name__)

_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """Where a model's weights come from and how it is run."""

    inputs_dir: Path
    model: ModelOptions
    train: TrainOptions
    is_restored: bool


def build_model(plan: ModelPlan, mesh: DeviceMesh, device: torch.device) -> nn.Module:
    """Return the sharded model; its weights are undefined if the plan says they are restored."""
    has_weights = bool(_weight_files(plan.inputs_dir))
    is_drawn = not (has_weights or plan.is_restored)
    torch.manual_seed(plan.train.seed)
    try:
        config = AutoConfig.from_pretrained(plan.inputs_dir, local_files_only=True)
        with _parameters_on_meta(enabled=not is_drawn):
            model: nn.Module = AutoModelForCausalLM.from_config(
                config,
                dtype=torch.float32,
                attn_implementation=_attention(plan.model.attention, plan.train.precision),
            )
    except (OSError, ValueError, ImportError) as error:
        first_line = str(error).partition("\n")[0]
        raise ModelInvalid(
            f"{plan.inputs_dir} holds no model that can be built: {first_line}",
            "Check model.base and its config.json, or set model.attention: eager.",
        ) from error
    if plan.train.liger:
        _use_liger(model)
    checkpoint_activations(model, plan.train, plan.model.max_length, mesh, device)
    layers = _layers(model)
    if plan.train.compile:
        for layer in layers:
            layer.compile(dynamic=True)
    _shard(model, layers, mesh, plan.train.precision)
    add_loss(model)
    if not is_drawn:
        _materialize(model, device)
    if has_weights and not plan.is_restored:
        _load_weights(model, plan.inputs_dir)
    return model.train()


def _attention(choice: Attention, precision: Precision) -> str:
    if choice is Attention.AUTO:
        choice = _fastest_attention(precision)
    if choice is Attention.SDPA:
        attention.register()
        return attention.NAME
    return str(choice.value)


def _fastest_attention(precision: Precision) -> Attention:
    # Flash attention has no fp32 kernels.
    if not torch.cuda.is_available() or precision is Precision.FP32:
        return Attention.SDPA
    # Only where there is a GPU: this import asks every installed package for its version.
    from transformers.utils.import_utils import (
        is_flash_attn_2_available,
        is_flash_attn_3_available,
    )

    # Version 3 is written for Hopper and runs on nothing else.
    if torch.cuda.get_device_capability()[0] == 9 and is_flash_attn_3_available():
        return Attention.FLASH_ATTENTION_3
    return Attention.FLASH_ATTENTION_2 if is_flash_attn_2_available() else Attention.SDPA


def _use_liger(model: nn.Module) -> None:
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ImportError as error:
        raise ModelInvalid(
            f"train.liger needs liger-kernel: {error}.",
            "Install it (pip install 'spot-orchestrator[gpu]'), or set train.liger: false.",
        ) from error
    # Not its loss: train.loss has that of the trained predictions alone.
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)


@contextmanager
def _parameters_on_meta(*, enabled: bool) -> Iterator[None]:
    """Create parameters without memory, but buffers with their values.

    Buffers that no checkpoint holds (rotary frequencies) would be garbage after to_empty().
    Source: accelerate.init_empty_weights, without the 0.6 s of its import.
    """
    if not enabled:
        yield
        return
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # One that is on meta already is tied to another: a copy would untie them.
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _layers(model: nn.Module) -> list[nn.Module]:
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _shard(
    model: nn.Module, layers: Sequence[nn.Module], mesh: DeviceMesh, precision: Precision
) -> None:
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if precision is Precision.BF16
        else MixedPrecisionPolicy()
    )
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _materialize(model: nn.Module, device: torch.device) -> None:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _WEIGHTS_INDEX
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
    return [folder / _WEIGHTS] if (folder / _WEIGHTS).exists() else []


def _load_weights(model: nn.Module, folder: Path) -> None:
    """Read each rank's rows, where the files have the model's own names for its tensors."""
    files = {path: safe_open(str(path), framework="pt") for path in _weight_files(folder)}
    names: dict[str, Any] = {}  # safetensors ships no types
    for file in files.values():
        names |= dict.fromkeys(file.keys(), file)  # type: ignore[no-untyped-call]
    parameters = dict(model.named_parameters())
    buffers = {name: one for name, one in model.named_buffers() if name in model.state_dict()}
    missing = sorted((parameters.keys() | buffers.keys()) - names.keys())
    if missing:
        log.info("%s has no %s: transformers loads it whole, on rank 0", folder, missing[0])
        _load_whole(model, folder)
        return
    for name, parameter in parameters.items():
        _copy_rows(parameter, names[name].get_slice(name), name)
    for name, buffer in buffers.items():
        buffer.copy_(names[name].get_tensor(name))


def _load_whole(model: nn.Module, folder: Path) -> None:
    """Let transformers rename, stack and split what it will; needs the whole model's memory once.

    Raises ModelInvalid if it finds no weights for a part of the model.
    """
    state: dict[str, Any] = {}
    lacking: list[str] = []
    if dist.get_rank() == 0:
        loaded, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        state = loaded.state_dict()
        lacking = sorted(found["missing_keys"])
    # All ranks have to know, or they wait for one another.
    is_lacking = torch.tensor([len(lacking)], device=next(model.parameters()).device)
    dist.broadcast(is_lacking, src=0)
    if is_lacking.item():
        raise ModelInvalid(
            f"{folder} has no weights for {', '.join(lacking[:3]) or 'all of the model'}.",
            "Use weights of the architecture that config.json names.",
        )
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state, options=options)


def _copy_rows(parameter: nn.Parameter, source: object, name: str) -> None:
    shape = tuple(source.get_shape())  # type: ignore[attr-defined]  # safetensors ships no types
    if shape != tuple(parameter.shape):
        raise ModelInvalid(
            f"{name} has shape {shape} in the weights, {tuple(parameter.shape)} in the model.",
            "Use weights of the architecture that config.json names.",
        )
    assert isinstance(parameter, DTensor)
    local_shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    rows = source[offset[0] : offset[0] + local_shape[0]]  # type: ignore[index]
    with torch.no_grad():
        parameter.to_local().copy_(rows)
