"""A worker's process: `transformers serve`, which batches, with what its API promises kept.

Its batches take the sampling of the first request for all that follow, it decodes greedily whatever
the temperature if the model's own settings do not sample, and it ignores what it does not know.
Written against transformers 5.17: `python -m orchestrator.serving.transformers_server serve NAME`.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from pathlib import Path
from typing import Any, TypeAlias

import uvicorn
from fastapi import HTTPException

from orchestrator.serving.answering import SAMPLING, Answering
from orchestrator.serving.held_head import HeldHead
from orchestrator.serving.sampling import NOT_QUITE_ONE, Refused

# What transformers and torch hold; neither is imported here, so neither has types.
_Foreign: TypeAlias = Any
# transformers' default, which its command line leaves alone.
_BLOCK_TOKENS = 256
# A top_p comes back as a 32-bit number.
_ROUNDING = 1e-6


def _draw_as_asked(batches: _Foreign) -> None:
    """Have transformers' ContinuousBatchingManager draw tokens as each request asks."""
    start, add = batches.__init__, batches.add_request

    @functools.wraps(start)
    def start_apart(manager: object, **options: _Foreign) -> None:
        options["continuous_batching_config"].per_request_processors = True
        start(manager, **options)

    @functools.wraps(add)
    def add_request(manager: object, token_ids: list[int], **options: _Foreign) -> object:
        asked = SAMPLING.get()
        drawn = {"temperature": asked.temperature, "top_p": asked.top_p}
        return add(manager, token_ids, **options, **drawn)

    batches.__init__, batches.add_request = start_apart, add_request


def _keep_to_the_room(answers: _Foreign, most_tokens: int) -> None:
    """Have transformers' CBGenerateManager write what there is room for, or refuse.

    What does not fit into its cache it would keep for ever, and what exceeds the model's context is
    answered with noise.
    """

    def fitted(generate: _Foreign) -> _Foreign:
        @functools.wraps(generate)
        def generate_what_fits(
            manager: object, model: object, processor: object, inputs: _Foreign,
            settings: _Foreign, **options: _Foreign,
        ) -> object:  # fmt: skip
            try:
                # Of the object that says afterwards whether the end was the limit's.
                settings.max_new_tokens = SAMPLING.get().room(len(inputs["input_ids"]), most_tokens)
            except Refused as refused:
                raise HTTPException(400, str(refused)) from refused
            return generate(manager, model, processor, inputs, settings, **options)

        return generate_what_fits

    for name in ("generate_streaming", "generate_non_streaming"):
        setattr(answers, name, fitted(getattr(answers, name)))


def _skip_needless_sorts(nucleus: _Foreign, float32: object) -> None:
    """Have a batch that leaves nothing out sort nothing: a CPU writes 1.5 times as much."""
    cut = nucleus.__call__

    @functools.wraps(cut)
    def cut_if_asked(self: object, scores: _Foreign, top_ps: _Foreign) -> _Foreign:
        # Elsewhere the sort is cheap, and a recorded CUDA graph cannot take turns.
        if scores.device.type == "cpu":
            asked = top_ps[: scores.size(0)].view(dtype=float32)
            if float(asked.min()) > NOT_QUITE_ONE - _ROUNDING:
                return scores
        return cut(self, scores, top_ps)

    nucleus.__call__ = cut_if_asked


def main() -> None:
    """Run `transformers` with this process's arguments."""
    # By name, for the orchestrator itself imports none of it: this is a process of its own.
    batching = importlib.import_module("transformers.generation.continuous_batching.continuous_api")
    drawing = importlib.import_module(
        "transformers.generation.continuous_batching.cb_logits_processors"
    )
    model = Path(sys.argv[2])
    answers = importlib.import_module("transformers.cli.serving.utils").CBGenerateManager
    _draw_as_asked(batching.ContinuousBatchingManager)
    _keep_to_the_room(answers, _most_tokens(model, sys.argv))
    _skip_needless_sorts(
        drawing.ContinuousBatchingTopPLogitsWarper, importlib.import_module("torch").float32
    )
    config = uvicorn.Config
    uvicorn.Config = lambda app, **options: config(  # type: ignore[assignment,misc]
        HeldHead(Answering(app, model)), **options
    )
    importlib.import_module("transformers.cli.transformers").main()


def _most_tokens(model: Path, arguments: list[str]) -> int:
    """Return what the model's context and the cache, if bounded, have room for."""
    most: int = json.loads((model / "config.json").read_bytes()).get(
        "max_position_embeddings", sys.maxsize
    )
    if "--cb-num-blocks" in arguments:
        blocks = int(arguments[arguments.index("--cb-num-blocks") + 1])
        most = min(most, blocks * _BLOCK_TOKENS)
    return most


if __name__ == "__main__":
    main()
