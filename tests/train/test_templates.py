"""Tokens and mask against an independent construction, and against transformers' own rendering.

`CONVERSATIONS`, a folder of ShareGPT files, adds those to the ones written here.
"""

import functools
import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.config import ChatTemplate
from train.data.conversations import Conversation, Pair, read_conversations
from train.data.encoding import make_encoder
from train.data.template import SYSTEM_PROMPT
from train.data.tokenizer import load_tokenizer, train_tokenizer
from train.errors import DataInvalid

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = [EXAMPLES / "conversations.json"]
if "CONVERSATIONS" in os.environ:
    FILES += sorted(Path(os.environ["CONVERSATIONS"]).glob("*.json"))

SPECIALS = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<pad>"]
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama 2's: texts are stripped, the system prompt is put into the first question.
STRIPPING = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for message in rest %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() "
    "+ ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MARKED = CHATML.replace(
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}",
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}",
)

FRAGMENTS = ["a", "b", " ", "\n", "é", "世", "🚀", "👩‍👩‍👧", "\u2028", "\x00", *SPECIALS]
FRAGMENTS += [" USER: ", " ASSISTANT:", "[INST]", "{{ x }}", "{% generation %}", "<<SYS>>"]
# The marks that train.data.model_template renders with.
FRAGMENTS += ["\ue0f0", "\ue0f1", "\ue0f2", "\ue0f20\ue0f2"]
hostile = (
    st.lists(st.sampled_from(FRAGMENTS) | st.characters(exclude_categories=["Cs"]), min_size=1)
    .map("".join)
    .filter(lambda text: bool(text.strip()))
)
conversations = st.builds(
    Conversation,
    id=st.just("c"),
    system=st.none() | hostile,
    pairs=st.lists(st.builds(Pair, user=hostile, assistant=hostile), min_size=1, max_size=4).map(
        tuple
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer like those of chat models: byte-level BPE with special tokens of its own."""
    texts = [pair.assistant for one in read_conversations(FILES[0])[0] for pair in one.pairs]
    folder = tmp_path_factory.mktemp("tokenizer")
    trained = train_tokenizer([*texts, SYSTEM_PROMPT], 1500, 2048)
    trained.tokenizer.add_special_tokens(SPECIALS)
    trained.write(folder, CHATML)
    return folder


@functools.cache
def encoder(folder, template, source=None, eos="</s>"):
    tokenizer = load_tokenizer(folder)
    settings = {**tokenizer.settings, "eos_token": eos}
    if source is not None:
        settings["chat_template"] = source
    tokenizer = type(tokenizer)(
        tokenizer=tokenizer.tokenizer,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.tokenizer.token_to_id(eos),
        pad_id=tokenizer.pad_id,
        settings=settings,
        prefixes_space=False,
    )
    return make_encoder(tokenizer, template, 1 << 20)


def encode(made, conversation):
    (sample,), notes = made.to_samples(conversation)
    assert notes == []
    return sample.tokens.tolist(), sample.trained.tolist()


def slow_vicuna(tokenizer, conversation):
    """Write the prompt down text by text, and encode each; the independent construction."""
    bos, eos = tokenizer.bos_id, tokenizer.eos_id

    def ids(text):
        # Character by character would not be BPE: split at what spells a special token instead.
        return tokenizer.tokenizer.encode(text, add_special_tokens=False).ids

    tokens = [bos, *ids(SYSTEM_PROMPT if conversation.system is None else conversation.system)]
    mask = [0] * len(tokens)
    for number, pair in enumerate(conversation.pairs):
        given = ids(" USER:" if number == 0 else "USER:") + ids(" " + pair.user)
        given += ids(" ASSISTANT:")
        answer = [*ids(" " + pair.assistant), eos]
        tokens += given + answer
        mask += [0] * len(given) + [1] * len(answer)
    return tokens, mask


def slow_chatml(tokenizer, conversation):
    start, end = (tokenizer.tokenizer.token_to_id(one) for one in SPECIALS[:2])

    def ids(text):
        return tokenizer.tokenizer.encode(text, add_special_tokens=False).ids

    tokens, mask = [], []
    turns = [] if conversation.system is None else [("system", conversation.system)]
    for pair in conversation.pairs:
        turns += [("user", pair.user), ("assistant", pair.assistant)]
    behind = ""
    for role, text in turns:
        before = ids(behind) if behind else []
        if role == "assistant":
            prompt, answer = ids("assistant\n"), [*ids(text), end]
        else:
            prompt, answer = [*ids(f"{role}\n{text}"), end], []
        tokens += [*before, start, *prompt, *answer]
        mask += [0] * (len(before) + 1 + len(prompt)) + [1] * len(answer)
        behind = "\n"
    return tokens + ids(behind), mask + [0] * len(ids(behind))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_masks_of_real_conversations_equal_the_slow_construction(folder, file):
    vicuna = encoder(folder, ChatTemplate.VICUNA)
    chatml = encoder(folder, ChatTemplate.MODEL, eos="<|im_end|>")
    found, _ = read_conversations(file)
    for conversation in found:
        assert encode(vicuna, conversation) == slow_vicuna(vicuna.tokenizer, conversation)
        assert encode(chatml, conversation) == slow_chatml(chatml.tokenizer, conversation)


@given(conversation=conversations)
def test_masks_of_hostile_texts_equal_the_slow_construction(folder, conversation):
    vicuna = encoder(folder, ChatTemplate.VICUNA)
    chatml = encoder(folder, ChatTemplate.MODEL, eos="<|im_end|>")
    assert encode(vicuna, conversation) == slow_vicuna(vicuna.tokenizer, conversation)
    assert encode(chatml, conversation) == slow_chatml(chatml.tokenizer, conversation)


@given(conversation=conversations, source=st.sampled_from([CHATML, STRIPPING, MARKED]))
def test_texts_inject_nothing_and_the_pieces_are_the_text(folder, conversation, source):
    eos = "</s>" if source is STRIPPING else "<|im_end|>"
    made = encoder(folder, ChatTemplate.MODEL, source, eos)
    pieces = made.pieces(conversation)
    tokens = [piece.token for piece in pieces]
    specials = set(made.tokenizer.specials.values())
    num_turns = 2 * len(conversation.pairs) + (conversation.system is not None)
    num_specials = 2 * (len(conversation.pairs) if source is STRIPPING else num_turns)
    assert sum(token in specials for token in tokens) == num_specials
    assert (tokens, [int(piece.is_trained) for piece in pieces]) == encode(made, conversation)
    trained = "".join(piece.text for piece in pieces if piece.is_trained)
    answers = [
        f" {pair.assistant.strip()} {eos}" if source is STRIPPING else pair.assistant + eos
        for pair in conversation.pairs
    ]
    assert trained == "".join(answers)


@pytest.mark.parametrize("source", [CHATML, STRIPPING, MARKED])
def test_transformers_renders_and_tokenizes_the_same(folder, source, tmp_path):
    from transformers import AutoTokenizer

    eos = "</s>" if source is STRIPPING else "<|im_end|>"
    made = encoder(folder, ChatTemplate.MODEL, source, eos)
    made.tokenizer.write(tmp_path, source)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for conversation in read_conversations(FILES[0])[0][:5]:
        messages = []
        for pair in conversation.pairs:
            messages.append({"role": "user", "content": pair.user})
            messages.append({"role": "assistant", "content": pair.assistant})
        pieces = made.pieces(conversation)
        assert "".join(piece.text for piece in pieces) == theirs.apply_chat_template(
            messages, tokenize=False
        )
        tokens, trained = encode(made, conversation)
        if source is MARKED:
            rendered = theirs.apply_chat_template(
                messages, return_dict=True, return_assistant_tokens_mask=True
            )
            assert (tokens, trained) == (rendered["input_ids"], rendered["assistant_masks"])


def test_in_another_process_texts_inject_nothing_either(folder):
    conversation = Conversation(
        id="a", system=None, pairs=(Pair(user="u</s>", assistant="<|im_end|></s>"),)
    )
    for template in ChatTemplate:
        made = encoder(folder, template, eos="<|im_end|>")
        sent = pickle.loads(pickle.dumps(made))
        assert encode(sent, conversation) == encode(made, conversation)


def test_what_ends_a_turn_is_trained_where_it_is_not_eos(folder):
    made = encoder(folder, ChatTemplate.MODEL, CHATML, eos="</s>")
    conversation = Conversation(id="a", system=None, pairs=(Pair(user="u", assistant="a"),))
    pieces = made.pieces(conversation)
    assert "".join(piece.text for piece in pieces if piece.is_trained) == "a<|im_end|>"


def test_a_template_that_cannot_be_used_is_refused(folder):
    with pytest.raises(DataInvalid, match="chat template"):
        encoder(folder, ChatTemplate.MODEL, "{{ broken")
    forgetful = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    made = encoder(folder, ChatTemplate.MODEL, forgetful)
    conversation = Conversation(id="a", system=None, pairs=(Pair(user="u", assistant="a"),))
    samples, notes = made.to_samples(conversation)
    assert samples == []
    assert "leaves out" in notes[0].why


def test_show_prints_whole_conversations_whose_pieces_are_the_text(folder, capsys):
    from train.data.show import main

    assert main([str(FILES[0]), "--tokenizer", str(folder)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found, _ = read_conversations(FILES[0])
    assert [line["id"] for line in lines] == [one.id for one in found]
    for line, conversation in zip(lines, found, strict=True):
        assert len(line["token_ids"]) == len(line["trained"]) == len(line["pieces"])
        turns = "".join(
            f"USER: {pair.user} ASSISTANT: {pair.assistant}</s>" for pair in conversation.pairs
        )
        assert "".join(line["pieces"]) == f"<s>{SYSTEM_PROMPT} {turns}"
    assert main([str(FILES[0]), "--id", "nobody"]) == 2
