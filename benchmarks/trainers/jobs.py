"""What a trainer's process is told, and what it says of its run."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

MAX_LENGTH = 2048
LEARNING_RATE = 2e-5
MAX_GRAD_NORM = 1.0
# Sequences per forward pass of the trainers that pad, as in FastChat's scripts; those that pack
# take one full sequence at a time, which has about as many tokens.
PADDED_MICRO_BATCH = 2
# About what is trained on between two optimizer updates: one packed sequence, or one padded batch,
# so that an epoch is a whole number of steps for everybody.
TOKENS_PER_STEP = 2048
# The second epoch is measured: the same samples for all, after late imports and allocations.
NUM_EPOCHS = 2


class Variant(str, Enum):
    """A trainer, in the order in which they are shown."""

    OURS = "ours"
    PADDING = "padding"
    HF_TRAINER = "hf_trainer"
    TRL_PACKED = "trl_packed"


PACKAGES = {Variant.TRL_PACKED: ("trl", "datasets")}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Inputs(_Record):
    """What was prepared, for all variants: samples, and the sequences that ours makes of them."""

    num_samples: int
    num_sequences: int
    num_tokens: int
    num_trained_tokens: int
    num_words: int
    """Entries of the tokenizer's vocabulary."""
    num_parameters: int


class Job(_Record):
    """One run of a variant, from the same weights over the same samples."""

    variant: Variant
    inputs_dir: Path
    scratch: Path
    inputs: Inputs
    seed: int
    """Of the order of the samples, and so of which are padded together."""
    is_profiled: bool = False


class Figures(_Record):
    """What one run measured, of its steps after the warm-up."""

    tokens_per_cpu_s: float
    tokens_per_s: float
    peak_rss_mb: float
    cpu_s: float
    num_tokens: int
    num_steps: int
    shares: dict[str, float] = {}
    """Shares of the loop's time by phase, where it was profiled."""
    outside: dict[str, float] = {}
    """Shares by function of what is outside the phases, the largest ones."""
