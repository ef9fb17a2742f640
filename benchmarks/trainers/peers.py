"""Hugging Face's Trainer, and TRL's on top of it, each as its users would set it up for this run.

The samples are those that ours prepared, token for token, with the same loss mask. Nothing is
logged, saved or evaluated within the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.trainers.jobs import (
    LEARNING_RATE,
    MAX_GRAD_NORM,
    MAX_LENGTH,
    NUM_EPOCHS,
    PADDED_MICRO_BATCH,
    Figures,
    Job,
    Variant,
)
from benchmarks.trainers.meter import Meter
from train.data.dataset import TRAIN_NAME

_IGNORED = -100

Sample = dict[str, list[int]]
Batch = dict[str, torch.Tensor]


def measure(job: Job) -> Figures:
    """Train; return the figures."""
    model = AutoModelForCausalLM.from_pretrained(job.inputs_dir, dtype=torch.float32)
    make = _trl if job.variant is Variant.TRL_PACKED else _trainer
    trainer = make(job, model)
    # Every step is one batch.
    meter = Meter(len(trainer.get_train_dataloader()))
    model.register_forward_pre_hook(count_tokens(meter), with_kwargs=True)
    trainer.add_callback(Steps(meter))
    trainer.train()
    return meter.figures()


def _trainer(job: Job, model: Any) -> Any:  # noqa: ANN401  # transformers ships no types
    """Return the plain Trainer; `padding` is what fastchat/train/train.py does."""
    samples = read_samples(job.inputs_dir / TRAIN_NAME)
    pad_id = model.config.pad_token_id
    length = MAX_LENGTH if job.variant is Variant.PADDING else None
    return Trainer(
        model=model,
        args=TrainingArguments(
            **_arguments(job),
            per_device_train_batch_size=PADDED_MICRO_BATCH,
        ),
        train_dataset=samples,
        data_collator=lambda batch: pad(batch, pad_id, length),
    )


def _trl(job: Job, model: Any) -> Any:  # noqa: ANN401  # trl ships no types
    """Return TRL's trainer; it folds `assistant_masks` into the labels, and packs."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    samples = [
        {
            "input_ids": sample["input_ids"],
            "assistant_masks": [int(label != _IGNORED) for label in sample["labels"]],
        }
        for sample in read_samples(job.inputs_dir / TRAIN_NAME)
    ]
    return SFTTrainer(
        model=model,
        args=SFTConfig(
            **_arguments(job),
            max_length=MAX_LENGTH,
            packing=True,
            packing_strategy="bfd",
            per_device_train_batch_size=1,
            # TRL's default is to compute activations twice; nobody else here does.
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(samples),
        processing_class=AutoTokenizer.from_pretrained(job.inputs_dir),
    )


def _arguments(job: Job) -> dict[str, Any]:
    return {
        "output_dir": str(job.scratch),
        "num_train_epochs": NUM_EPOCHS,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.0,
        "max_grad_norm": MAX_GRAD_NORM,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": job.seed,
    }


def read_samples(path: Path) -> list[Sample]:
    """Return the prepared samples with labels instead of their mask."""
    arrays = load_file(path)
    samples = []
    offsets = arrays["offsets"].tolist()
    for start, stop in pairwise(offsets):
        tokens, trained = arrays["tokens"][start:stop].tolist(), arrays["trained"][start:stop]
        labels = [
            token if is_one else _IGNORED for token, is_one in zip(tokens, trained, strict=True)
        ]
        samples.append({"input_ids": tokens, "labels": labels})
    return samples


def pad(samples: Sequence[Sample], pad_id: int, length: int | None) -> Batch:
    """Return a batch padded to `length`, or to the longest sample."""
    length = length or max(len(sample["input_ids"]) for sample in samples)
    fill = {"input_ids": pad_id, "labels": _IGNORED}
    batch = {
        key: torch.tensor([s[key] + [value] * (length - len(s[key])) for s in samples])
        for key, value in fill.items()
    }
    masks = [[1] * len(s["input_ids"]) + [0] * (length - len(s["input_ids"])) for s in samples]
    return {**batch, "attention_mask": torch.tensor(masks)}


def count_tokens(meter: Meter) -> Callable[[Any, Any, dict[str, Any]], None]:
    """Return a hook that counts what goes forward, without padding."""

    def count(_: object, __: object, inputs: dict[str, Any]) -> None:
        mask = inputs.get("attention_mask")
        tokens = inputs["input_ids"].numel() if mask is None else int(mask.sum())
        meter.see_tokens(tokens)

    return count


class Steps(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Tells the meter of ended steps."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_step_end(self, *_: object, **__: object) -> None:
        """Note one more."""
        self._meter.end_step()
