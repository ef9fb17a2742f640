"""Encode many conversations: the template that the options name, on all cores where it pays."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from train.config import ChatTemplate
from train.data.conversations import Conversation, Dropped
from train.data.model_template import ModelTemplate
from train.data.progress import progress
from train.data.samples import Encoder, Sample
from train.data.template import Template, VicunaTemplate
from train.data.tokenizer import ChatTokenizer
from train.errors import DataInvalid

# One process takes 5 s for so many (960 of the real ones a second).
_MIN_PARALLEL = 5_000
_CHUNK = 500
_WHAT = "Tokenizing"  # orchestrator.inputs passes on lines that begin so

_Encoded = tuple[list[Sample], list[Dropped]]


def make_encoder(tokenizer: ChatTokenizer, template: ChatTemplate, max_length: int) -> Encoder:
    """Return an encoder; raises DataInvalid if the tokenizer brings no template to use."""
    chosen: Template
    if template is ChatTemplate.MODEL:
        chosen = ModelTemplate(own_template(tokenizer), tokenizer.controls, tokenizer.settings)
    else:
        chosen = VicunaTemplate(bos=tokenizer.bos, eos=tokenizer.eos)
    return Encoder(tokenizer=tokenizer, template=chosen, max_length=max_length)


def own_template(tokenizer: ChatTokenizer) -> str:
    """Return the chat template that the tokenizer brings; raises DataInvalid."""
    source = tokenizer.settings.get("chat_template")
    if isinstance(source, list):  # of named ones
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        raise DataInvalid(
            "The model's tokenizer brings no chat template.", "Set data.template: vicuna."
        )
    return source


def encode_all(encoder: Encoder, conversations: Sequence[Conversation]) -> Iterator[_Encoded]:
    """Yield each conversation's samples and notes, in order; say on stderr how far it is."""
    if len(conversations) < _MIN_PARALLEL:
        yield from map(encoder.to_samples, conversations)
        return
    # Not fork: training a tokenizer leaves threads behind.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        max_workers=len(os.sched_getaffinity(0)),
        mp_context=context,
        initializer=_start_worker,
        initargs=(encoder,),
    ) as pool:
        chunks = [
            conversations[start : start + _CHUNK] for start in range(0, len(conversations), _CHUNK)
        ]
        done = itertools.chain.from_iterable(pool.map(_encode_chunk, chunks))
        with progress(_WHAT, len(conversations)) as show:
            for number, encoded in enumerate(done, start=1):
                show(number, number)
                yield encoded


# One worker process's encoder: it is sent once, and not with every chunk.
_worker: list[Encoder] = []


def _start_worker(encoder: Encoder) -> None:
    _worker.append(encoder)


def _encode_chunk(conversations: Sequence[Conversation]) -> list[_Encoded]:
    return [_worker[0].to_samples(conversation) for conversation in conversations]
