"""What a training attempt is told: the spec's `model`, `data`, `train` sections and `TrainConfig`.

Torch-free, because the command line validates specs with these very models. How the values are
used is decided in the modules that use them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from train.errors import ConfigInvalid

DEFAULT_EPOCHS = 3.0

_INTERVAL = re.compile(r"(?P<amount>\d+(?:\.\d+)?)\s*(?P<unit>steps?|s|min|h)")
_SECONDS_PER_UNIT = {"s": 1.0, "min": 60.0, "h": 3600.0}
_MOST = 1_000_000_000


class Attention(str, Enum):
    """The attention implementation that transformers is asked for."""

    AUTO = "auto"
    SDPA = "sdpa"
    EAGER = "eager"
    FLASH_ATTENTION_2 = "flash_attention_2"
    FLASH_ATTENTION_3 = "flash_attention_3"


class Schedule(str, Enum):
    """How the learning rate goes on after the warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


class Precision(str, Enum):
    """What the forward and backward pass compute in; master weights are always fp32."""

    BF16 = "bf16"
    FP32 = "fp32"


class ActivationCheckpointing(str, Enum):
    """What layers drop of their activations, and compute again in the backward pass."""

    AUTO = "auto"
    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


# Bytes that are kept of a layer's activations per token and unit of width, 16-bit, with flash
# attention (Korthikanti et al. 2022, equation 1); half of it with attention and every second
# product kept; with full checkpointing the layer's input alone.
KEPT_BYTES = {
    ActivationCheckpointing.NONE: 34,
    ActivationCheckpointing.SELECTIVE: 17,
    ActivationCheckpointing.FULL: 2,
}


class Sharding(str, Enum):
    """Over which ranks weights, gradients and optimizer are split."""

    HYBRID = "hybrid"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """How often to save: every `steps`, every `seconds`, or (both None) as Young's formula says."""

    steps: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        if self.steps is not None:
            return f"{self.steps} steps"
        return "auto" if self.seconds is None else f"{self.seconds:.16g}s"


def parse_interval(text: object) -> Interval:
    """Read `auto`, `<n> steps` or `<n>s|min|h`; raises ValueError."""
    if isinstance(text, Interval):
        return text
    if text == "auto":
        return Interval()
    match = _INTERVAL.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r:.80} is not an interval: write auto, 50 steps, 30s, 5min or 2h")
    amount, unit = float(match["amount"]), match["unit"]
    if not 0 < amount <= _MOST:
        raise ValueError(f"{text!r:.80} is not an interval: more than 0, up to {_MOST:,}")
    if unit in _SECONDS_PER_UNIT:
        return Interval(seconds=amount * _SECONDS_PER_UNIT[unit])
    if not amount.is_integer():
        raise ValueError(f"{text!r} is not an interval: steps are whole")
    return Interval(steps=int(amount))


IntervalField = Annotated[
    Interval,
    BeforeValidator(parse_interval),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string"}),
]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class ModelOptions(_Section):
    """The spec's `model` section."""

    base: str = Field(min_length=1)
    """Model to start from: a folder with config.json (weights optional), or a hub id."""
    attention: Attention = Attention.AUTO
    """Attention implementation; auto is flash attention 3 or 2 where installed, else sdpa."""
    max_length: int = Field(default=2048, ge=16, le=1_048_576)
    """Tokens per sequence at most; longer conversations go on in a further sample."""


class ChatTemplate(str, Enum):
    """How a conversation is written as one text."""

    VICUNA = "vicuna"
    MODEL = "model"


class Untrainable(str, Enum):
    """What to do about a conversation of which nothing would be trained."""

    ERROR = "error"
    DROP = "drop"


class DataOptions(_Section):
    """The spec's `data` section."""

    train: str = Field(min_length=1)
    """ShareGPT conversations: path or URL of a .json or .jsonl file."""
    eval_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Share of the conversations that is kept for evaluation and never trained on."""
    template: ChatTemplate = ChatTemplate.VICUNA
    """How conversations are written: vicuna (v1.1), or model: by its own chat template."""
    packing: bool = True
    """Fill each sequence of model.max_length tokens with samples; none attends to another."""
    untrainable: Untrainable = Untrainable.ERROR
    """What to do about a conversation of which nothing would be trained: error or drop."""
    num_tokens: int | None = Field(default=None, ge=1)
    """Expected tokens per epoch, used by `plan` until the data is prepared."""


class TrainOptions(_Section):
    """The spec's `train` section. Defaults are those of the published Vicuna recipe."""

    epochs: float | None = Field(default=None, gt=0, le=10_000)
    """Passes over the training data; 3 when neither this nor num_steps is given."""
    num_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Optimizer updates, instead of epochs, where a run is to be short."""
    global_batch: int = Field(default=128, ge=1, le=1_000_000)
    """Sequences per optimizer update, over all ranks; the same at any world size."""
    micro_batch: int = Field(default=1, ge=1, le=65_536)
    """Sequences per forward pass on one rank; bounded by memory, without effect on the result."""
    learning_rate: float = Field(default=2e-5, gt=0, le=10)
    """Peak learning rate, reached at the end of the warm-up."""
    warmup_fraction: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Schedule = Schedule.COSINE
    """How the learning rate falls after the warm-up."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    precision: Precision = Precision.BF16
    """What forward and backward compute in; master weights and reductions stay fp32."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the initial weights, the evaluation split and the order of the data."""
    deterministic: bool = True
    """Use deterministic algorithms only, so that replayed steps are equal bit for bit."""
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.AUTO
    """none, selective (keep attention and every second product), full (keep a layer's input alone:
    least memory, about a third more work), or auto: the first of these that memory allows."""
    sharding: Sharding = Sharding.HYBRID
    """hybrid: split over the ranks of a node, replicated over nodes; full: split over all ranks."""
    compile: bool = False
    """Compile each layer (torch.compile); the first steps take longer."""
    liger: bool = False
    """Use liger-kernel's norms, rotary embedding and MLP where it knows the model; needs a GPU."""
    eval_every: int | None = Field(default=None, ge=1)
    """Evaluate before the first step and every so many; null: at the end only."""
    spike_factor: float | None = Field(default=5.0, gt=1)
    """A batch whose loss is this many times the running mean is left out; null: only NaN is."""
    roll_back_batches: int = Field(default=20, ge=0)
    """How many batches before three bad ones in a row are left out with them."""

    @model_validator(mode="before")
    @classmethod
    def _choose_length(cls, given: Any) -> Any:  # noqa: ANN401  # raw input of any shape
        if not isinstance(given, dict):
            return given
        epochs, num_steps = given.get("epochs"), given.get("num_steps")
        if epochs is not None and num_steps is not None:
            raise ValueError(f"epochs {epochs} and num_steps {num_steps} exclude each other")
        if epochs is None and num_steps is None:
            return {**given, "epochs": DEFAULT_EPOCHS}
        return given


class CheckpointOptions(_Section):
    """The spec's `checkpoints` section."""

    interval: IntervalField = Interval()
    """How often to save: auto, "50 steps", "30s", "5min" or "2h"."""
    keep_last: int = Field(default=3, ge=1)
    """Newest checkpoints to keep."""
    keep_every: int | None = Field(default=None, ge=1)
    """Also keep every checkpoint whose step is a multiple of this, in steps."""
    stores: dict[str, str] = {}
    """Stores near the nodes, by cloud/region; attempts there save to them instead of to `store`."""


class RunHazard(_Section):
    """What preemptions the run has seen before this attempt, for the interval between saves."""

    num_preemptions: int = Field(default=0, ge=0)
    """Attempts that ended because their nodes were taken back or lost."""
    exposure_seconds: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """How long each earlier attempt's nodes were up, whatever ended it."""
    time_scale: float = Field(default=1.0, gt=0)
    """Seconds of the market per second of the clock; only a simulated market's differ."""


class TrainConfig(_Section):
    """All that one attempt's trainer is told; the agent writes it, `python -m train` reads it."""

    schema_version: Literal[1] = 1
    """Version of this file's layout."""
    run: str = Field(min_length=1)
    """Name of the run."""
    attempt: int = Field(ge=1)
    """Number of the claimed attempt."""
    store: str = Field(min_length=1)
    """URL of the run folder."""
    objects_store: str | None = None
    """URL of the store near the nodes that checkpoints go to; null: the run folder."""
    other_stores: tuple[str, ...] = ()
    """URLs of stores that may hold older checkpoints."""
    parent: str | None = None
    """Key of the manifest to resume from; null starts from the model folder's weights."""
    inputs_dir: Path
    """Folder that train.data.prepare wrote, on this node."""
    num_steps: int = Field(ge=1)
    """Optimizer updates of the whole run, resolved from epochs where the spec gave these."""
    model: ModelOptions
    """The spec's model section."""
    train: TrainOptions
    """The spec's train section."""
    checkpoints: CheckpointOptions = CheckpointOptions()
    """The spec's checkpoints section."""
    spool_dir: Path
    """Folder for spool.jsonl and the outcomes, on this node's scratch disk."""
    notice_file: Path
    """File whose appearance announces the node's end."""
    owner_pid: int | None = Field(default=None, ge=1)
    """Process without which the ranks end at once."""
    flush_timeout_s: float = Field(default=10.0, ge=0)
    """Longest wait for the agent's upload before a commit, in seconds."""
    hazard: RunHazard = RunHazard()
    """What preemptions the run has seen."""


def load_config(path: Path) -> TrainConfig:
    """Read the configuration file; raises ConfigInvalid."""
    try:
        return TrainConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigInvalid(
            f"{path} cannot be read: {error.strerror}.", "Give the path of a TrainConfig file."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigInvalid(
            f"{path}: {where}: {first['msg']}.", "Write it with train.config.TrainConfig."
        ) from error


def resolve_num_steps(options: TrainOptions, num_sequences: int) -> int:
    """Return the optimizer updates that show every one of `num_sequences` `epochs` times.

    The last batch is filled from the next epoch.
    """
    if options.num_steps is not None:
        return options.num_steps
    assert options.epochs is not None
    return max(1, math.ceil(options.epochs * num_sequences / options.global_batch))
