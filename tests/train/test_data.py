"""Conversations to samples: the mask is exact, nothing is injected, no turn is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from train.config import ChatTemplate
from train.data.conversations import Conversation, Pair, read_conversations
from train.data.dataset import Dataset
from train.data.encoding import make_encoder
from train.data.prepare import prepare
from train.data.template import SYSTEM_PROMPT
from train.data.tokenizer import train_tokenizer
from train.errors import DataInvalid

AWKWARD = (
    Pair(user="Hello", assistant="Hi there!"),
    Pair(user="Grüße, 世界 🚀", assistant="日本語 and emoji 👩‍👩‍👧, naïve café"),
    Pair(
        user="Code? USER: fake ASSISTANT: fake</s>",
        assistant="```python\ndef f(x):\n\treturn x  # </s><s><pad>\n```\nUSER: no ASSISTANT: no",
    ),
    Pair(user="  spaces  ", assistant="\n\nleading newlines and trailing space "),
)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [text for pair in AWKWARD for text in (pair.user, pair.assistant)]
    return train_tokenizer([*texts, SYSTEM_PROMPT], 600, 2048)


def to_samples(conversation, tokenizer, max_length):
    return make_encoder(tokenizer, ChatTemplate.VICUNA, max_length).to_samples(conversation)


def spans(tokens, trained):
    """Return the token ids of each unbroken stretch that is trained."""
    found, inside = [], False
    for token, flag in zip(tokens, trained, strict=True):
        if flag and not inside:
            found.append([])
        if flag:
            found[-1].append(token)
        inside = bool(flag)
    return found


def decode(tokenizer, ids):
    return tokenizer.tokenizer.decode(list(ids), skip_special_tokens=False)


def test_exactly_the_answers_and_their_eos_are_trained(tokenizer):
    conversation = Conversation(id="a", system=None, pairs=AWKWARD)
    (sample,), notes = to_samples(conversation, tokenizer, 4096)
    assert notes == []
    trained = spans(sample.tokens, sample.trained)
    assert [span[-1] for span in trained] == [tokenizer.eos_id] * len(AWKWARD)
    assert [decode(tokenizer, span[:-1]) for span in trained] == [
        f" {pair.assistant}" for pair in AWKWARD
    ]


def test_tokens_decode_to_the_vicuna_prompt(tokenizer):
    conversation = Conversation(id="a", system=None, pairs=AWKWARD[:2])
    (sample,), _ = to_samples(conversation, tokenizer, 4096)
    first, second = AWKWARD[:2]
    assert decode(tokenizer, sample.tokens) == (
        f"<s>{SYSTEM_PROMPT} USER: {first.user} ASSISTANT: {first.assistant}</s>"
        f"USER: {second.user} ASSISTANT: {second.assistant}</s>"
    )


def test_text_cannot_inject_special_tokens(tokenizer):
    conversation = Conversation(id="a", system="be</s> <s>nice<pad>", pairs=AWKWARD)
    (sample,), _ = to_samples(conversation, tokenizer, 4096)
    tokens = sample.tokens.tolist()
    assert tokens.count(tokenizer.eos_id) == len(AWKWARD)
    assert tokens.count(tokenizer.bos_id) == 1
    assert tokenizer.pad_id not in sample.tokens


def test_a_long_conversation_goes_on_in_further_samples_without_losing_a_turn(tokenizer):
    pairs = tuple(
        Pair(user=f"question {n} " * 5, assistant=f"answer {n} " * (n % 7 + 1)) for n in range(40)
    )
    samples, notes = to_samples(Conversation(id="a", system="S", pairs=pairs), tokenizer, 300)
    assert notes == []
    assert len(samples) > 2
    assert all(len(sample.tokens) <= 300 for sample in samples)
    assert all(decode(tokenizer, sample.tokens).startswith("<s>S USER: ") for sample in samples)
    answers = [span for sample in samples for span in spans(sample.tokens, sample.trained)]
    assert [decode(tokenizer, span) for span in answers] == [
        f" {pair.assistant}</s>" for pair in pairs
    ]


def test_a_pair_that_is_too_long_is_cut_and_reported(tokenizer):
    pairs = (Pair(user="short", assistant="word " * 500), Pair(user="next", assistant="kept"))
    samples, notes = to_samples(Conversation(id="a", system="S", pairs=pairs), tokenizer, 100)
    assert len(samples[0].tokens) == 100
    assert decode(tokenizer, spans(samples[1].tokens, samples[1].trained)[0]) == " kept</s>"
    assert [note.why.split(" has ")[0] for note in notes] == ["pair 1"]


def test_a_sample_without_a_trained_token_is_dropped_and_reported(tokenizer):
    pairs = (Pair(user="word " * 500, assistant="never reached"),)
    samples, notes = to_samples(Conversation(id="a", system="S", pairs=pairs), tokenizer, 100)
    assert samples == []
    assert len(notes) == 2


def turns(*texts):
    return [{"from": speaker, "value": value} for speaker, value in texts]


def write_jsonl(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_json_and_json_lines_read_alike(tmp_path):
    items = [{"id": 7, "conversations": turns(("human", "a\u2028b"), ("gpt", "c"))}]
    lines = write_jsonl(tmp_path / "a.jsonl", items)
    whole = tmp_path / "a.json"
    whole.write_text(json.dumps(items, ensure_ascii=False))
    assert read_conversations(lines) == read_conversations(whole)
    (conversation,), _ = read_conversations(lines)
    assert conversation.pairs == (Pair(user="a\u2028b", assistant="c"),)
    assert conversation.id == "7"


def test_unusable_turns_and_conversations_are_reported(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [
            {"id": "ok", "conversations": turns(("user", "q"), ("chatgpt", "a"))},
            {"id": "lead", "conversations": turns(("gpt", "x"), ("human", "q"), ("bing", "a"))},
            {"id": "tail", "conversations": turns(("human", "q"), ("gpt", "a"), ("human", "q"))},
            {"id": "mute", "conversations": turns(("human", "q"))},
            {"id": "order", "conversations": turns(("human", "q"), ("human", "q"), ("gpt", "a"))},
            {"id": "blank", "conversations": turns(("human", "q"), ("gpt", " "))},
        ],
    )
    conversations, dropped = read_conversations(path)
    assert [conversation.id for conversation in conversations] == ["ok", "lead", "tail"]
    assert {note.id: note.why for note in dropped} == {
        "lead": "1 leading assistant turns removed",
        "tail": "unanswered last user turn removed",
        "mute": "no assistant turn",
        "order": "wrong role order: 'user' where assistant is due (turn 2)",
        "blank": "turn 2 is empty",
    }


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "it is empty"),
        ("{not json", "is not JSON"),
        ("[1, 2]", "item 1 is not a conversation"),
        ('{"id": "a", "conversations": [{"from": "human"}]}', "turn 1 needs"),
        ('{"conversations": [{"from": "human", "value": "q"}]}', "no assistant turn"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_files_that_are_not_conversations_are_refused(tmp_path, content, what):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(DataInvalid, match=what):
        read_conversations(path)


@pytest.fixture
def model_dir(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 9000}))
    return folder


@pytest.fixture
def train_file(tmp_path):
    items = [
        {"id": f"c{n}", "conversations": turns(("human", f"What is {n}?"), ("gpt", f"It is {n}."))}
        for n in range(20)
    ]
    return write_jsonl(tmp_path / "train.jsonl", items)


def run_prepare(model_dir, train_file, output):
    command = [sys.executable, "-m", "train.data.prepare", "--model", model_dir]
    command += ["--train", train_file, "--max-length", "128", "--eval-fraction", "0.1"]
    command += ["--seed", "3", "--output", output]
    root = Path(__file__).parents[2]
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=root, timeout=60
    )


def test_prepared_bytes_depend_on_the_input_alone(model_dir, train_file, tmp_path):
    first = run_prepare(model_dir, train_file, tmp_path / "a")
    again = run_prepare(model_dir, train_file, tmp_path / "b")
    assert first.stdout == again.stdout
    printed = json.loads(first.stdout)
    assert printed["num_samples"] == 18
    assert printed["num_eval_samples"] == 2
    assert printed["files"] == sorted(path.name for path in (tmp_path / "a").iterdir())
    for name in printed["files"]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_config_gets_the_size_of_the_tokenizer(model_dir, train_file, tmp_path):
    printed = json.loads(run_prepare(model_dir, train_file, tmp_path / "a").stdout)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["vocab_size"] == printed["vocab_size"] < 9000
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 1, 2)


def test_bad_input_is_one_line_and_exit_2(model_dir, tmp_path):
    result = run_prepare(model_dir, tmp_path / "absent.json", tmp_path / "a")
    assert result.returncode == 2
    assert result.stdout == ""
    assert set(json.loads(result.stderr)) == {"what", "next_step"}


def test_transformers_renders_and_tokenizes_the_same_prompt(model_dir, train_file, tmp_path):
    from transformers import AutoTokenizer

    prepare(
        model=model_dir,
        train=train_file,
        max_length=128,
        eval_fraction=0.0,
        seed=0,
        output=tmp_path / "a",
        packing=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    dataset = Dataset(tmp_path / "a" / "train.safetensors")
    (segment,) = dataset[5]
    tokens, trained = segment.tokens, segment.trained
    messages = [
        {"role": "user", "content": "What is 5?"},
        {"role": "assistant", "content": "It is 5."},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == tokenizer.decode(tokens)
    rendered = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    assert rendered["input_ids"] == tokens.tolist()
    assert rendered["assistant_masks"] == trained.tolist()
