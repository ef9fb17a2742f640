"""What a checkpoint holds: the tensors by name, the ranks' generators, and where the run stands."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields

import numpy as np
import torch
from pydantic import JsonValue, TypeAdapter, ValidationError
from torch import nn

from train.config import TrainConfig
from train.errors import ConfigInvalid

# These change how fast a step is computed, and where, but not what it is meant to compute.
_WITHOUT_EFFECT = frozenset(
    {"micro_batch", "activation_checkpointing", "sharding", "compile", "eval_every"}
)


Batches = tuple[int, int]
"""Numbers of batches: from the first to before the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands between two steps; `batch` is the number of the next one.

    It is more than `step` where batches were left out. `mean_loss` is the running mean by which
    they are judged, over `num_losses` steps; `skipped` is what roll-backs leave out, one each.
    """

    step: int
    batch: int
    num_tokens: int
    num_trained_tokens: int
    mean_loss: float
    num_losses: int
    skipped: tuple[Batches, ...]


START = Progress(
    step=0,
    batch=0,
    num_tokens=0,
    num_trained_tokens=0,
    mean_loss=0.0,
    num_losses=0,
    skipped=(),
)

_FIELDS = tuple(one.name for one in fields(Progress))
_PROGRESS = TypeAdapter(Progress)


def named_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return weights, persistent buffers and both moments and step counts, by name."""
    tensors: dict[str, torch.Tensor] = {}
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    for name, parameter in parameters.items():
        tensors[f"model.{name}"] = parameter.detach()
        for part, tensor in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{part}"] = tensor
    for name, tensor in model.state_dict().items():
        if name in buffers:
            tensors[f"model.{name}"] = tensor
    return tensors


def read_generators(rank: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return a copy of the states of this rank's random generators, by name."""
    states = {f"rng.cpu.{rank:05d}": torch.get_rng_state()}
    if device.type == "cuda":
        states[f"rng.cuda.{rank:05d}"] = torch.cuda.get_rng_state(device)
    return states


def write_generators(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Set this rank's random generators to what `read_generators` returned."""
    for name, state in states.items():
        if name.startswith("rng.cuda."):
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)


def seed_generators(seed: int, step: int, rank: int) -> None:
    """Seed this rank's generators where no saved state fits: at the start, or after resharding."""
    words = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))


def to_state(progress: Progress, config: TrainConfig) -> dict[str, JsonValue]:
    """Return what the manifest says of the run beside its tensors."""
    return {
        **_PROGRESS.dump_python(progress, mode="json"),
        "seed": config.train.seed,
        "torch_version": torch.__version__,
        "numbers_digest": numbers_digest(config),
    }


def from_state(state: dict[str, object], config: TrainConfig, manifest: str) -> Progress:
    """Return where the run stands; raises ConfigInvalid if this configuration cannot go on."""
    if state.get("numbers_digest") != numbers_digest(config):
        raise ConfigInvalid(
            f"{manifest} was written with other model or train options.",
            "Give these options back their former values, or start a run of another name.",
        )
    try:
        return _PROGRESS.validate_python({name: state.get(name) for name in _FIELDS})
    except ValidationError as error:
        names = ", ".join(str(problem["loc"][0]) for problem in error.errors())
        raise ConfigInvalid(
            f"{manifest} does not say where the run stands: {names}.", "Use another checkpoint."
        ) from error


def numbers_digest(config: TrainConfig) -> str:
    """Return a digest of all options that determine the numbers of the run."""
    options = config.train.model_dump(mode="json", exclude=set(_WITHOUT_EFFECT))
    model = config.model.model_dump(mode="json", exclude={"base"})
    text = json.dumps([config.num_steps, model, options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
