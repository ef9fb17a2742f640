"""README.md of a released model, in the Hugging Face format: the hub's metadata, then sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from checkpoints.manifest import Manifest
from orchestrator.card.evaluation import evaluation_section
from orchestrator.card.provenance import DataUsed
from orchestrator.card.sections import (
    cost_section,
    data_section,
    is_hub_id,
    public_name,
    recipe_section,
    training_section,
)
from orchestrator.view import RunView
from train.config import ChatTemplate

# The hub knows this word; it is true until whoever publishes has looked.
_LICENSE = (
    "license: unknown  # fill this in: it follows from the licences of the base and of the data\n"
)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_UNSAID = """## Limits
Nobody has written down here what this model is for, and where it is biased or wrong: fill this in \
before publishing. Training says nothing about that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What is known of the files beside the card."""

    dtype: str
    """Of the weights, as safetensors names it; several are separated by commas."""
    delta_from: str | None = None
    """The base, where the files are a delta."""


def model_card(
    view: RunView,
    manifest: Manifest,
    data: DataUsed,
    release: Release,
) -> str:
    """Return the card of the checkpoint; look it through before publishing it."""
    name = view.record.run
    sections = [
        f"---\n{_metadata(view, data, release)}---",
        f"# {name}",
        _introduction(view, manifest),
        _use_section(view, release),
        data_section(view, data),
        recipe_section(view, manifest),
        training_section(view, manifest),
        evaluation_section([one for one in view.state.judged if one.step == manifest.step]),
        cost_section(view),
        _UNSAID,
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(view: RunView, data: DataUsed, release: Release) -> str:
    spec = view.record.spec
    fields: dict[str, Any] = {}
    if data.cleaning is not None and data.cleaning.language is not None:
        fields["language"] = [data.cleaning.language]
    if is_hub_id(spec.model.base):
        fields |= {"base_model": spec.model.base, "base_model_relation": "finetune"}
    # A delta cannot be loaded, so the hub must not offer to run it.
    if release.delta_from is None:
        fields |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    fields["tags"] = [
        "conversational",
        "spot-orchestrator",
        *(["delta"] * bool(release.delta_from)),
    ]
    return _LICENSE + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _introduction(view: RunView, manifest: Manifest) -> str:
    record = view.record
    base = public_name(record.spec.model.base)
    has_weights = any(file.name in _WEIGHTS for file in record.inputs)
    made = f"`{base}` fine-tuned" if has_weights else f"The architecture of `{base}` trained anew"
    whole = "" if manifest.step == record.num_steps else ", before the end of its training"
    return (
        f"{made} on conversations, as of step {manifest.step} of "
        f"{record.num_steps}{whole}. What follows was written from the run's own records by "
        "`orchestrate checkpoints export`."
    )


def _use_section(view: RunView, release: Release) -> str:
    name = view.record.run
    lines = ["## How to use it"]
    if release.delta_from is not None:
        lines += [
            f"These files are a delta: they are of no use without `{release.delta_from}`. With it, "
            "they become the released weights, bit for bit:",
            "```bash",
            f"orchestrate checkpoints apply-delta BASE {name}-delta --output {name}",
            "```",
        ]
    lines += [
        f"Weights are {release.dtype}. {_prompt(view)}",
        "```bash",
        f"orchestrate serve --local {name}              # a server of the OpenAI API",
        "orchestrate chat http://127.0.0.1:PORT       # the address that it says",
        "```",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        "```",
    ]
    return "\n".join(lines)


def _prompt(view: RunView) -> str:
    if view.record.spec.data.template is ChatTemplate.VICUNA:
        form = "Vicuna's (v1.1): `USER: ... ASSISTANT: ...`, after a system prompt"
    else:
        form = "the base model's own chat template"
    return f"Prompts are {form}; the tokenizer holds it."
