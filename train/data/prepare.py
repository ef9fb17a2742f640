"""Prepare a run's inputs once: `python -m train.data.prepare --model DIR --train FILE ...`.

Prints one JSON object about what it wrote, or (exit 2) one about what is wrong. Identical input
gives identical bytes, so that inputs can be addressed by their digest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from checkpoints.regular_files import read_regular
from train.config import ChatTemplate, Untrainable
from train.data.conversations import Conversation, Dropped, read_conversations
from train.data.dataset import EVAL_NAME, TRAIN_NAME, write_dataset
from train.data.encoding import encode_all, make_encoder, own_template
from train.data.order import packing_order, split_eval
from train.data.packing import pack
from train.data.samples import Encoder, Sample
from train.data.template import VICUNA_CHAT_TEMPLATE, Special, VicunaTemplate
from train.data.tokenizer import ChatTokenizer, load_tokenizer, train_tokenizer
from train.errors import DataInvalid, TrainError

CONFIG_NAME = "config.json"
_MOST_CONFIG_BYTES = 16 << 20
_WEIGHTS_NAME = "model.safetensors"
_WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
_GENERATION_NAME = "generation_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What was written, and what was left out; the tokens are those of one epoch."""

    files: list[str]
    num_conversations: int
    num_samples: int
    num_sequences: int
    num_eval_samples: int
    num_tokens: int
    num_trained_tokens: int
    fill: float
    vocab_size: int
    dropped: list[Dropped]


def prepare(
    *,
    model: Path,
    train: Path,
    max_length: int,
    eval_fraction: float,
    seed: int,
    output: Path,
    template: ChatTemplate = ChatTemplate.VICUNA,
    packing: bool = True,
    untrainable: Untrainable = Untrainable.ERROR,
) -> Prepared:
    """Write all inputs of a run into `output`; raises DataInvalid."""
    model_config = _read_model_config(model)
    conversations, dropped = read_conversations(train)
    tokenizer = load_tokenizer(model) or train_tokenizer(
        _texts(conversations),
        _vocab_size(model_config, model),
        max_length,
        model_config.get("model_type"),
    )
    encoder = make_encoder(tokenizer, template, max_length)
    kept_for_eval = split_eval(seed, len(conversations), eval_fraction)
    train_samples, eval_samples, notes = _encode(encoder, conversations, kept_for_eval)
    dropped += notes
    _require_trainable(dropped, untrainable)
    if not train_samples:
        raise DataInvalid(
            f"{train} leaves no sample to train on at {max_length} tokens per sample.",
            "Raise model.max_length, lower data.eval_fraction, or give more conversations.",
        )

    output.mkdir(parents=True, exist_ok=True)
    weights = _copy_weights(model, output)
    model_config = _fit_to_tokenizer(model_config, tokenizer, has_weights=bool(weights))
    _write_json(output / CONFIG_NAME, model_config)
    chat_template = VICUNA_CHAT_TEMPLATE
    if template is ChatTemplate.MODEL:
        chat_template = own_template(tokenizer)
    files = [CONFIG_NAME, *tokenizer.write(output, chat_template), *weights, TRAIN_NAME]
    sequences = _sequences(train_samples, seed, max_length, packing=packing)
    write_dataset(output / TRAIN_NAME, train_samples, sequences)
    if eval_samples:
        files.append(EVAL_NAME)
        eval_sequences = _sequences(eval_samples, seed, max_length, packing=packing)
        write_dataset(output / EVAL_NAME, eval_samples, eval_sequences)
    num_tokens = sum(len(sample.tokens) for sample in train_samples)
    return Prepared(
        files=sorted(files),
        num_conversations=len({sample.id for sample in train_samples + eval_samples}),
        num_samples=len(train_samples),
        num_sequences=len(sequences),
        num_eval_samples=len(eval_samples),
        num_tokens=num_tokens,
        num_trained_tokens=sum(sample.num_trained for sample in train_samples),
        fill=num_tokens / (len(sequences) * max_length),
        vocab_size=tokenizer.vocab_size,
        dropped=dropped,
    )


def _encode(
    encoder: Encoder, conversations: Sequence[Conversation], kept_for_eval: Container[int]
) -> tuple[list[Sample], list[Sample], list[Dropped]]:
    """Return the samples to train on, those to evaluate on, and what was cut or dropped."""
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    dropped: list[Dropped] = []
    for index, (samples, notes) in enumerate(encode_all(encoder, conversations)):
        parts[index in kept_for_eval].extend(samples)
        if not samples:
            notes[-1] = replace(notes[-1], is_whole=True)
        dropped += notes
    return *parts, dropped


def _sequences(
    samples: Sequence[Sample], seed: int, max_length: int, *, packing: bool
) -> list[list[int]]:
    if not packing:
        return [[index] for index in range(len(samples))]
    lengths = [len(sample.tokens) for sample in samples]
    return list(pack(lengths, packing_order(seed, len(lengths)), max_length))


def _require_trainable(dropped: Sequence[Dropped], untrainable: Untrainable) -> None:
    without = [note for note in dropped if note.is_whole]
    if not without or untrainable is Untrainable.DROP:
        return
    first = without[0]
    more = f", and of {len(without) - 1} more" if len(without) > 1 else ""
    raise DataInvalid(
        f"Nothing of conversation {first.id} would be trained ({first.why}){more}.",
        "Clean the file with orchestrate data prepare, raise model.max_length, or set "
        "data.untrainable: drop.",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.data.prepare", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json")
    parser.add_argument("--train", type=Path, required=True, help="ShareGPT .json or .jsonl file")
    parser.add_argument("--max-length", type=int, required=True, help="tokens per sequence")
    parser.add_argument("--eval-fraction", type=float, required=True, help="0 to 1")
    parser.add_argument("--seed", type=int, required=True, help="of the split and the packing")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--template", type=ChatTemplate, default=ChatTemplate.VICUNA)
    parser.add_argument("--packing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--untrainable", type=Untrainable, default=Untrainable.ERROR)
    try:
        prepared = prepare(**vars(parser.parse_args(arguments)))
    except TrainError as error:
        problem = {"what": error.what, "next_step": error.next_step}
        sys.stderr.write(json.dumps(problem) + "\n")
        return 2
    sys.stdout.write(json.dumps(asdict(prepared)) + "\n")
    return 0


def _read_model_config(model: Path) -> dict[str, object]:
    path = model / CONFIG_NAME
    next_step = "Give a model folder in the Hugging Face layout, as examples/tiny-llama."
    try:
        model_config = json.loads(read_regular(path, _MOST_CONFIG_BYTES))
    except OSError as error:
        raise DataInvalid(f"{path} cannot be read: {error.strerror}.", next_step) from error
    except (ValueError, RecursionError) as error:
        raise DataInvalid(f"{path} is not JSON: {error}.", next_step) from error
    if not isinstance(model_config, dict) or "model_type" not in model_config:
        raise DataInvalid(f"{path} names no model_type.", next_step)
    return model_config


def _vocab_size(model_config: dict[str, object], model: Path) -> int:
    vocab_size = model_config.get("vocab_size")
    if not isinstance(vocab_size, int):
        raise DataInvalid(
            f"{model / CONFIG_NAME} has no whole vocab_size: {vocab_size!r}.",
            "Set vocab_size, or put a tokenizer.json there.",
        )
    return vocab_size


def _texts(conversations: Iterable[Conversation]) -> Iterator[str]:
    """Yield all that is tokenized; the prompt too, which is in every sample and should be short."""
    # Of specials, which are to come, only the spelling matters, and that is not yielded.
    template = VicunaTemplate(bos=None, eos=Special(text="", id=0))
    for conversation in conversations:
        pieces = template.pieces(conversation.system, conversation.pairs)
        yield from (piece.text for piece in pieces if piece.token is None)


def _copy_weights(model: Path, output: Path) -> list[str]:
    names = [name for name in (_WEIGHTS_NAME, _WEIGHTS_INDEX_NAME) if (model / name).exists()]
    if _WEIGHTS_INDEX_NAME in names:
        index = json.loads((model / _WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        names += sorted(set(index["weight_map"].values()))
    if names and (model / _GENERATION_NAME).exists():
        names.append(_GENERATION_NAME)
    for name in names:
        if not (model / name).is_file() or Path(name).name != name:
            raise DataInvalid(
                f"{model} lacks {name}, which its index names.", "Download the model again."
            )
        shutil.copyfile(model / name, output / name)
    return names


def _fit_to_tokenizer(
    model_config: dict[str, object], tokenizer: ChatTokenizer, *, has_weights: bool
) -> dict[str, object]:
    vocab_size = tokenizer.vocab_size
    if has_weights:
        # Embeddings are often padded beyond the tokenizer; weights say how many rows there are.
        rows = model_config.get("vocab_size")
        if not isinstance(rows, int) or rows < vocab_size:
            raise DataInvalid(
                f"The tokenizer has {vocab_size} tokens, the model's weights {rows} rows.",
                "Use the tokenizer that the model was trained with.",
            )
        vocab_size = rows
    return {
        **model_config,
        "vocab_size": vocab_size,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
