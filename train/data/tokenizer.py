"""Take the model folder's tokenizer, or train one on the conversations; write it for transformers.

It is what transformers makes of the folder, which is not always what tokenizer.json says: what is
trained is then prompted with the same tokens. Special tokens, and others that templates are made
of, are only ever added by id: text that spells one becomes ordinary characters.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers

from checkpoints.regular_files import open_regular
from train.data.template import ControlToken, Piece, Special
from train.errors import DataInvalid

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
# Where newer tokenizers keep what older ones have in their configuration.
_TEMPLATE_NAME = "chat_template.jinja"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# The 256 bytes and the special tokens are always there.
MIN_VOCAB_SIZE = 256 + 3
# For these kinds of models, transformers takes tokenizer.json as it is; else it is asked, which
# takes 4 s of imports.
_TAKEN_AS_IT_IS = ("llama", "gpt_neox")
# Put before a text that goes on, so that no space is put there; in no vocabulary, so that it is
# bytes, which merge with nothing.
_ANCHOR = "\ue0f3"


class SpacePrefix(Enum):
    """Before which texts a tokenizer puts a space of its own, as SentencePiece does."""

    NONE = "none"
    FIRST = "first"  # the one that all begins with
    PARTS = "parts"  # each that follows a special token, and the first


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTokenizer:
    """A tokenizer with the ids of its special tokens and what tokenizer_config.json says.

    `source` is its tokenizer.json; `tokenizer` is the same, but knows no control token in a text.
    `anchor` are the ids of a text that is put before one that goes on.
    """

    source: str
    tokenizer: Tokenizer
    controls: Mapping[str, ControlToken]
    bos_id: int | None
    eos_id: int
    pad_id: int
    settings: dict[str, object]
    space_prefix: SpacePrefix = SpacePrefix.NONE
    anchor: tuple[int, ...] = ()

    def __reduce__(self) -> tuple[object, ...]:
        """Be made anew elsewhere: Tokenizer's pickle forgets that text is never special."""
        return _chat_tokenizer, (self.source, self.settings)

    @property
    def vocab_size(self) -> int:
        """Return the number of rows the embedding needs."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def bos(self) -> Special | None:
        """Return what a sample begins with, None where the tokenizer has nothing for it."""
        return None if self.bos_id is None else self._special(self.bos_id)

    @property
    def eos(self) -> Special:
        """Return what ends an answer."""
        return self._special(self.eos_id)

    def goes_on(self, after: Piece | None) -> bool:
        """Say whether what stands after `after`, None if nothing does, gets no space before it."""
        if after is None:
            return False
        return after.token is None or self.space_prefix is SpacePrefix.FIRST

    def encode(self, text: str, *, goes_on: bool = False) -> list[int]:
        """Return the ids of `text`, none of them special; `goes_on` is that of the method."""
        encoding, num_skipped = self._encode(text, goes_on=goes_on)
        ids: list[int] = encoding.ids
        return ids[num_skipped:]

    def split(self, text: str, *, goes_on: bool = False) -> list[str]:
        """Return the part of `text` that each of its ids stands for.

        A token that ends within a character stands for nothing, the one that ends it for all of it.
        """
        encoding, num_skipped = self._encode(text, goes_on=goes_on)
        offsets = encoding.offsets[num_skipped:]
        given_before = len(_ANCHOR) if num_skipped else 0
        if not offsets:
            return []
        ends, end = [], 0
        for _, stop in offsets:
            end = max(end, stop - given_before)
            ends.append(end)
        ends[-1] = len(text)
        starts = [0, *ends[:-1]]
        parts = [text[start:stop] for start, stop in zip(starts, ends, strict=True)]
        # Bytes of one character share its place: it belongs to the last of them.
        for index in range(len(parts) - 1):
            if parts[index + 1] == "" and offsets[index] == offsets[index + 1]:
                parts[index], parts[index + 1] = "", parts[index]
        return parts

    def write(self, folder: Path, chat_template: str) -> list[str]:
        """Write what AutoTokenizer reads; return the files' names."""
        (folder / TOKENIZER_NAME).write_text(self.source, encoding="utf-8")
        settings = {**self.settings, "chat_template": chat_template}
        text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / TOKENIZER_CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
        return [TOKENIZER_NAME, TOKENIZER_CONFIG_NAME]

    def _encode(self, text: str, *, goes_on: bool) -> tuple[Encoding, int]:
        """Return the encoding, and how many of its ids are not of `text`."""
        if not goes_on or self.space_prefix is SpacePrefix.NONE:
            return self.tokenizer.encode(text, add_special_tokens=False), 0
        return self.tokenizer.encode(_ANCHOR + text, add_special_tokens=False), len(self.anchor)

    def _special(self, number: int) -> Special:
        text = self.tokenizer.id_to_token(number)
        assert text is not None  # the id came from this tokenizer
        return Special(text=text, id=number)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int, model_type: object = "llama"
) -> ChatTokenizer:
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
    trained = _chat_tokenizer(tokenizer.to_str(pretty=True), settings)
    if model_type in _TAKEN_AS_IT_IS:
        return trained
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trained.write(folder, "")
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        return _chat_tokenizer(_as_transformers_has_it(folder)[0], settings)


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
        for name in (TOKENIZER_NAME, TOKENIZER_CONFIG_NAME):
            open_regular(folder / name).close()  # the library would wait for a pipe
        source, names = _as_transformers_has_it(folder)
        settings = json.loads((folder / TOKENIZER_CONFIG_NAME).read_text(encoding="utf-8"))
        settings |= names
        if (folder / _TEMPLATE_NAME).exists():
            settings["chat_template"] = (folder / _TEMPLATE_NAME).read_text(encoding="utf-8")
    # Whatever transformers' tokenizers raise; and tokenizers a plain Exception.
    except Exception as error:
        raise DataInvalid(
            f"{folder} has a tokenizer that cannot be read: {error}.",
            f"Put a matching {TOKENIZER_NAME} and {TOKENIZER_CONFIG_NAME} there.",
        ) from error
    return _chat_tokenizer(source, settings)


def _as_transformers_has_it(folder: Path) -> tuple[str, dict[str, str]]:
    """Return as tokenizer.json what transformers makes of a folder's, and what it names special.

    Its classes have spaces, splits, normalization and special tokens of their own, by the model and
    its settings.
    """
    from transformers import AutoTokenizer  # 4 s

    loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    backend: Tokenizer = loaded.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = False
    names = ("bos_token", "eos_token", "pad_token")
    found = {name: getattr(loaded, name) for name in names}
    return backend.to_str(pretty=True), {name: one for name, one in found.items() if one}


def _chat_tokenizer(source: str, settings: dict[str, object]) -> ChatTokenizer:
    content = json.loads(source)
    controls = {}
    for token in content["added_tokens"]:
        # Others are words of the text: runs of spaces.
        token["special"] = token["special"] or not token["content"].isspace()
        if token["special"]:
            controls[token["content"]] = ControlToken(
                id=token["id"], strips_left=token["lstrip"], strips_right=token["rstrip"]
            )
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.encode_special_tokens = True
    eos_id = _token_id(tokenizer, settings, "eos_token")
    if eos_id is None:
        raise DataInvalid(
            "The tokenizer names no eos_token, so answers could not end.",
            f"Set eos_token in {TOKENIZER_CONFIG_NAME}.",
        )
    pad_id = _token_id(tokenizer, settings, "pad_token")
    space_prefix = _space_prefix(tokenizer, eos_id)
    return ChatTokenizer(
        source=source,
        tokenizer=tokenizer,
        controls=controls,
        bos_id=_token_id(tokenizer, settings, "bos_token"),
        eos_id=eos_id,
        pad_id=eos_id if pad_id is None else pad_id,
        settings=settings,
        space_prefix=space_prefix,
        anchor=_anchor(tokenizer) if space_prefix is not SpacePrefix.NONE else (),
    )


def _space_prefix(tokenizer: Tokenizer, special_id: int) -> SpacePrefix:
    """Find out by trying: there are four ways to say it in a tokenizer.json."""

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return found

    first, after_anchor = ids("a"), ids(f"{_ANCHOR}a")[len(ids(_ANCHOR)) :]
    if first == after_anchor:
        return SpacePrefix.NONE
    tokenizer.encode_special_tokens = False
    try:
        after_special = ids(f"{tokenizer.id_to_token(special_id)}a")[1:]
    finally:
        tokenizer.encode_special_tokens = True
    return SpacePrefix.PARTS if after_special == first else SpacePrefix.FIRST


def _anchor(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the anchor's ids; raises DataInvalid if it does not stay apart from what follows."""
    found: list[int] = tokenizer.encode(_ANCHOR, add_special_tokens=False).ids
    for text in ("a", " a", "\n", "1", _ANCHOR):
        ids: list[int] = tokenizer.encode(_ANCHOR + text, add_special_tokens=False).ids
        if ids[: len(found)] != found or len(ids) == len(found):
            raise DataInvalid(
                "The tokenizer has neither words nor bytes for characters that it does not know.",
                "Use a model whose tokenizer falls back to bytes.",
            )
    return tuple(found)


def _token_id(tokenizer: Tokenizer, settings: dict[str, object], name: str) -> int | None:
    token = settings.get(name)
    if isinstance(token, dict):
        token = token.get("content")
    found: int | None = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return found
