"""Split a conversation that is longer than the context into parts of whole pairs; none is lost."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

from train.config import ChatTemplate
from train.data.conversations import Conversation
from train.data.encoding import make_encoder
from train.data.samples import Encoder
from train.data.tokenizer import load_tokenizer
from train.errors import DataInvalid


def split_conversation(
    conversation: Conversation, folder: Path, max_length: int, template: ChatTemplate
) -> list[Conversation]:
    """Return the conversation, or its parts as ID_0, ID_1, ...

    They are those that training would make of it. A pair that is too long alone is a part of its
    own, which the trainer cuts and reports. Raises DataInvalid, and TemplateRefused if the template
    cannot write it.
    """
    parts = encoder_in(folder, max_length, template).split(conversation)
    if len(parts) == 1:
        return [conversation]
    return [
        replace(conversation, id=f"{conversation.id}_{number}", pairs=pairs)
        for number, pairs in enumerate(parts)
    ]


@functools.cache
def encoder_in(folder: Path, max_length: int, template: ChatTemplate) -> Encoder:
    """Return the encoder of a model folder; raises DataInvalid where it lacks what that needs."""
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise DataInvalid(
            f"{folder} has no tokenizer.json.", "Give the model's folder with --tokenizer."
        )
    return make_encoder(tokenizer, template, max_length)
