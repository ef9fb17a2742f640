"""Prepare what all variants train on, with the project's own command; the driver runs it once.

Run: python -m benchmarks.trainers.inputs CONVERSATIONS NUM_TOKENS FOLDER

The tokenizer is a byte-level BPE trained on all conversations, of 32,000 words if they hold as
many; the model has 32,000 rows in any case, and random weights that all variants load.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.trainers.jobs import MAX_LENGTH, PADDED_MICRO_BATCH, Inputs
from train.data.prepare import main as prepare

VOCAB_SIZE = 32_000
# 21.1 million parameters with an untied head; small enough for a step in seconds on one core.
MODEL: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": MAX_LENGTH,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB_SIZE,
}
PREPARED = "prepared"
_PREPARED_RECORD = "inputs.json"


def main(conversations: Path, num_tokens: int, folder: Path) -> None:
    """Write the prepared inputs below `folder` and say what they are, as JSON."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(MODEL))
    everything = _prepare(model, conversations, folder / "all")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / "all" / name, model / name)
    num_parameters = _write_weights(model)
    share = num_tokens / everything["num_tokens"]
    subset = folder / "subset.json"
    subset.write_text(json.dumps(_choose(json.loads(conversations.read_text("utf-8")), share)))
    prepared = _prepare(model, subset, folder / PREPARED)
    inputs = Inputs(
        # Without packing, a sequence is a sample.
        num_sequences=prepared.get("num_sequences", prepared["num_samples"]),
        num_words=everything["vocab_size"],
        num_parameters=num_parameters,
        **{key: prepared[key] for key in ("num_samples", "num_tokens", "num_trained_tokens")},
    )
    (folder / _PREPARED_RECORD).write_text(inputs.model_dump_json())


def read_inputs(folder: Path) -> Inputs:
    """Return what `main` said."""
    return Inputs.model_validate_json((folder / _PREPARED_RECORD).read_bytes())


def _prepare(model: Path, conversations: Path, output: Path) -> dict[str, Any]:
    arguments: dict[str, object] = {
        "--model": model,
        "--train": conversations,
        "--max-length": MAX_LENGTH,
        "--eval-fraction": 0,
        "--seed": 0,
        "--output": output,
    }
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = prepare([str(word) for pair in arguments.items() for word in pair])
    if status != 0:
        sys.exit(status)
    prepared: dict[str, Any] = json.loads(said.getvalue())
    return prepared


def _write_weights(model: Path) -> int:
    """Write random weights; return their number."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    drawn = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    drawn.save_pretrained(model)
    return sum(parameter.numel() for parameter in drawn.parameters())


def _choose(conversations: list[Any], share: float) -> list[Any]:
    """Return about `share` of the conversations, an even number, of all lengths alike.

    Even, so that batches of two have no half one at an epoch's end. One from the middle of each of
    equal slices by length: a few of the first would fill batches unlike all of them do.
    """
    by_size = sorted(range(len(conversations)), key=lambda n: len(json.dumps(conversations[n])))
    count = PADDED_MICRO_BATCH * max(1, round(share * len(conversations) / PADDED_MICRO_BATCH))
    slice_size = len(conversations) / count
    chosen = sorted(by_size[int((number + 0.5) * slice_size)] for number in range(count))
    return [conversations[number] for number in chosen]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
