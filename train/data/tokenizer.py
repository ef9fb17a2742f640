"""Take the model folder's tokenizer, or train one on the conversations; write it for transformers.

Special tokens are only ever added by id: text that spells one becomes ordinary characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from train.data.template import CHAT_TEMPLATE
from train.errors import DataInvalid

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# The 256 bytes and the special tokens are always there.
MIN_VOCAB_SIZE = 256 + 3
# SentencePiece's space; such tokenizers put one before every text that they are given.
_SPACE = "\u2581"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTokenizer:
    """A tokenizer with the ids of its special tokens and what tokenizer_config.json says."""

    tokenizer: Tokenizer
    bos_id: int | None
    eos_id: int
    pad_id: int
    settings: dict[str, object]
    prefixes_space: bool

    @property
    def vocab_size(self) -> int:
        """Return the number of rows the embedding needs."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, none of them special."""
        if self.prefixes_space:
            text = text.removeprefix(" ")
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def write(self, folder: Path) -> list[str]:
        """Write what AutoTokenizer reads; return the files' names."""
        # Read back by transformers, which wants special tokens in a rendered template recognised.
        self.tokenizer.encode_special_tokens = False
        self.tokenizer.save(str(folder / TOKENIZER_NAME))
        self.tokenizer.encode_special_tokens = True
        settings = {**self.settings, "chat_template": CHAT_TEMPLATE}
        text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / TOKENIZER_CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
        return [TOKENIZER_NAME, TOKENIZER_CONFIG_NAME]


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> ChatTokenizer:
    """Train a byte-level BPE of at most `vocab_size` tokens; the same texts give the same bytes."""
    if vocab_size < MIN_VOCAB_SIZE:
        raise DataInvalid(
            f"vocab_size {vocab_size} is too small for a byte-level tokenizer.",
            f"Set vocab_size in the model's config.json to {MIN_VOCAB_SIZE} or more.",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    return _chat_tokenizer(tokenizer, settings)


def load_tokenizer(folder: Path) -> ChatTokenizer | None:
    """Return the model folder's tokenizer, None if it has none; raises DataInvalid."""
    path = folder / TOKENIZER_NAME
    if not path.exists():
        if (folder / "tokenizer.model").exists():
            raise DataInvalid(
                f"{folder} has a tokenizer.model but no {TOKENIZER_NAME}.",
                "Convert it: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR).",
            )
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
        settings = json.loads((folder / TOKENIZER_CONFIG_NAME).read_text(encoding="utf-8"))
    # tokenizers raises plain Exception for a file that it cannot read.
    except Exception as error:
        raise DataInvalid(
            f"{folder} has a tokenizer that cannot be read: {error}.",
            f"Put a matching {TOKENIZER_NAME} and {TOKENIZER_CONFIG_NAME} there.",
        ) from error
    return _chat_tokenizer(tokenizer, settings)


def _chat_tokenizer(tokenizer: Tokenizer, settings: dict[str, object]) -> ChatTokenizer:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    eos_id = _token_id(tokenizer, settings, "eos_token")
    if eos_id is None:
        raise DataInvalid(
            "The tokenizer names no eos_token, so answers could not end.",
            f"Set eos_token in {TOKENIZER_CONFIG_NAME}.",
        )
    pad_id = _token_id(tokenizer, settings, "pad_token")
    return ChatTokenizer(
        tokenizer=tokenizer,
        bos_id=_token_id(tokenizer, settings, "bos_token"),
        eos_id=eos_id,
        pad_id=eos_id if pad_id is None else pad_id,
        settings=settings,
        prefixes_space=tokenizer.encode("a", add_special_tokens=False).tokens[0].startswith(_SPACE),
    )


def _token_id(tokenizer: Tokenizer, settings: dict[str, object], name: str) -> int | None:
    token = settings.get(name)
    if isinstance(token, dict):
        token = token.get("content")
    found: int | None = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return found
