"""Show what conversations become: `python -m train.data.show FILE [--tokenizer DIR] ...`.

Prints one JSON object per conversation and line, or (exit 2) one about what is wrong. Conversations
are whole, whatever their length; the pieces of text put together are the text.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from train.config import ChatTemplate
from train.data.conversations import Conversation, read_conversations
from train.data.encoding import make_encoder
from train.data.template import TemplateRefused
from train.data.tokenizer import ChatTokenizer, load_tokenizer, train_tokenizer
from train.errors import DataInvalid, TrainError

# Without a tokenizer of a model's: enough to see words.
_VOCAB_SIZE = 8_000
_MAX_LENGTH = 1_048_576


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.data.show", description=__doc__)
    parser.add_argument("file", type=Path, help="ShareGPT .json or .jsonl file")
    parser.add_argument("--id", help="only this conversation")
    parser.add_argument("--tokenizer", type=Path, help="model folder; else one is trained on FILE")
    parser.add_argument("--template", type=ChatTemplate, default=ChatTemplate.VICUNA)
    options = parser.parse_args(arguments)
    try:
        show(options.file, options.id, options.tokenizer, options.template)
    except TrainError as error:
        problem = {"what": error.what, "next_step": error.next_step}
        sys.stderr.write(json.dumps(problem) + "\n")
        return 2
    return 0


def show(file: Path, id_: str | None, folder: Path | None, template: ChatTemplate) -> None:
    """Write a line for each conversation; raises DataInvalid."""
    conversations, _ = read_conversations(file)
    encoder = make_encoder(_tokenizer(folder, conversations), template, _MAX_LENGTH)
    chosen = [one for one in conversations if id_ is None or one.id == id_]
    if not chosen:
        raise DataInvalid(f"{file} has no conversation {id_!r}.", f"It has {conversations[0].id}.")
    for conversation in chosen:
        try:
            pieces = encoder.pieces(conversation)
        except TemplateRefused as error:
            raise DataInvalid(
                f"Conversation {conversation.id}: {error}.", "Set data.template: vicuna."
            ) from error
        shown = {
            "id": conversation.id,
            "token_ids": [piece.token for piece in pieces],
            "trained": [int(piece.is_trained) for piece in pieces],
            "pieces": [piece.text for piece in pieces],
        }
        sys.stdout.write(json.dumps(shown, ensure_ascii=False) + "\n")


def _tokenizer(folder: Path | None, conversations: Sequence[Conversation]) -> ChatTokenizer:
    if folder is None:
        texts = (
            text
            for one in conversations
            for pair in one.pairs
            for text in (pair.user, pair.assistant)
        )
        return train_tokenizer(texts, _VOCAB_SIZE, _MAX_LENGTH)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise DataInvalid(
            f"{folder} has no tokenizer.json.", "Give a model folder, or leave --tokenizer out."
        )
    return tokenizer


if __name__ == "__main__":
    sys.exit(main())
