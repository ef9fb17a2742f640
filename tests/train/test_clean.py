"""Cleaning of one conversation: what is converted, what survives unharmed, what is cut and why."""

import html
import itertools
import json
import shutil
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import ChatTemplate
from train.data.cleaning import Settings, clean_item
from train.data.conversations import Conversation, Pair, Turn
from train.data.json_items import read_items
from train.data.markdown import HtmlUnreadable, clean_answer
from train.data.rules import Reason, Rules, clean_conversation, opening_digest
from train.data.split import encoder_in, split_conversation
from train.data.template import VICUNA_CHAT_TEMPLATE
from train.data.tokenizer import train_tokenizer
from train.errors import DataInvalid

PAGE = ('<div class="markdown prose w-full break-words dark:prose-invert light">{}</div>').format


def conversation(*texts, first="user"):
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [Turn(role=roles[n % 2], text=text) for n, text in enumerate(texts)]


def clean(turns, **rules):
    return clean_conversation("a", turns, Rules(**rules))


def reasons(cleaned):
    return [note.reason for note in cleaned.notes]


def texts(cleaned):
    return [text for pair in cleaned.conversation.pairs for text in (pair.user, pair.assistant)]


CODE = (
    '<pre><div class="bg-black rounded-md"><div class="flex"><span class="">python</span>'
    '<button class="flex ml-auto gap-2">Copy code</button></div><div class="p-4">'
    '<code class="!whitespace-pre hljs{}"><span class="hljs-keyword">def</span> __init__(self):\n'
    '    x = <span class="s">"a_b*c"</span>\n\n\n    <span>return</span> a &lt; b</code>'
    "</div></div></pre>"
).format
FENCED = '```python\ndef __init__(self):\n    x = "a_b*c"\n\n\n    return a < b\n```'


@pytest.mark.parametrize("language", [" language-python", ""])
def test_code_keeps_its_lines_and_language_and_loses_the_button(language):
    text, was_html = clean_answer(PAGE(f"<p>So:</p>{CODE(language)}<p>Done.</p>"))
    assert was_html
    assert text == f"So:\n\n{FENCED}\n\nDone."


def test_code_that_shows_a_fence_gets_a_longer_one():
    text, _ = clean_answer(PAGE("<pre><code>```\nx\n```</code></pre>"))
    assert text == "````\n```\nx\n```\n````"


def test_lists_tables_and_emphasis_become_markdown():
    text, _ = clean_answer(
        "<p><strong>a</strong> <code>List&lt;int&gt;</code></p><ul><li>x_y</li><li>2 * 3</li></ul>"
        "<table><thead><tr><th>A</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table>"
    )
    assert text == "**a** `List<int>`\n\n- x_y\n- 2 * 3\n\n| A |\n| --- |\n| 1 |"


FORMULA = (
    '<span class="katex"><span class="katex-mathml"><math><semantics><mrow><mi>x</mi></mrow>'
    '<annotation encoding="application/x-tex">x_1 &lt; 2</annotation></semantics></math></span>'
    '<span class="katex-html" aria-hidden="true"><span class="mord">x</span>1&lt;2</span></span>'
)


def test_a_drawn_formula_is_its_tex_source_once():
    text, _ = clean_answer(PAGE(f"<p>If {FORMULA}.</p>"))
    assert text == "If $x_1 < 2$."
    text, _ = clean_answer(PAGE(f'<p><span class="katex-display">{FORMULA}</span></p>'))
    assert text == "$$x_1 < 2$$"


@pytest.mark.parametrize(
    "text",
    [
        "if a < b and c > d: pass",
        "A List<int> or Map<String, List<p>>",
        "The <p> tag opens, </p> closes a paragraph.",
        '```html\n<div class="x"><p>hello</p></div>\n```',
        "Use `<br>`.\n\n    indented code\n\n\n\nthree empty lines",
        "<!DOCTYPE html>\n<html><body><p>x</p></body></html>",
        "#include <vector>\nstd::vector<int> v;",
        "Press the Copy code button.",
        "1 / 2 of them, and 3 / 4",
        "1 / 2",
        "x &lt; y &amp; z",
        "<3 you </3",
    ],
)
def test_plain_answers_survive_unharmed(text):
    assert clean_answer(text) == (text, False)


def test_what_users_write_is_never_taken_for_a_page():
    code = '<div class="a"><p>fix this</p></div>'
    cleaned = clean(conversation(code, "It is fine."))
    assert texts(cleaned) == [code, "It is fine."]
    assert cleaned.notes == ()


def test_labels_of_the_page_are_removed():
    cleaned = clean(
        conversation(
            "2 / 3\n\nhow?",
            "1 / 2<p>so</p>Copy12 chars / 3 words",
            "more",
            "```\npythonCopy code\nx = 1\n```",
        )
    )
    assert texts(cleaned) == ["how?", "so", "more", "```python\nx = 1\n```"]


def test_markup_that_was_written_about_is_not_converted_again():
    text, _ = clean_answer(PAGE("<p>&lt;p&gt;hello&lt;/p&gt;</p>"))
    assert text == "\\<p>hello</p>"
    assert clean_answer(text) == (text, False)


def test_markup_nested_too_deep_is_refused_not_a_crash():
    with pytest.raises(HtmlUnreadable):
        clean_answer("<div>" * 20_000 + "x" + "</div>" * 20_000)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        *("<p>" + " " * 500_000 + "x</p>", "<p>" + "<span " * 50_000 + "</p>", "```\n" * 50_000),
        *("1 / 2\n" * 5_000, "Copy1 chars / 1 words" * 10_000, "<div>" + "<p" * 50_000 + "</p>"),
    ],
)
def test_no_text_takes_the_square_of_its_length(text):
    markdown, _ = clean_answer(text)
    assert len(markdown) <= len(text)


@pytest.mark.parametrize(
    ("turns", "kept", "expected"),
    [
        (conversation("a", "q", "b", first="assistant"), ["q", "b"], [Reason.LEADING_ANSWER]),
        (conversation("q", "a", "r"), ["q", "a"], [Reason.UNANSWERED]),
        (conversation("q", "a", "r", " ", "s", "b"), ["q", "a"], [Reason.CUT_AT_EMPTY]),
        (
            conversation("q", "a", "r", "Too many requests in 1 hour. Try again later.", "s", "b"),
            ["q", "a"],
            [Reason.CUT_AT_PAGE_ERROR],
        ),
        (
            [*conversation("q", "a"), *conversation("b", "r", "c", first="assistant")],
            ["q", "a"],
            [Reason.CUT_AT_ROLE],
        ),
        (
            [*conversation("q"), *conversation("q"), *conversation("r", "a")],
            ["q\n\nr", "a"],
            [Reason.JOINED],
        ),
        (
            [*conversation("q", "a"), Turn(role="tool", text="x"), *conversation("r", "b")],
            ["q", "a"],
            [Reason.CUT_AT_ROLE],
        ),
    ],
)
def test_what_breaks_a_conversation_is_repaired_or_cut_off(turns, kept, expected):
    cleaned = clean(turns)
    assert texts(cleaned) == kept
    assert reasons(cleaned) == expected


@pytest.mark.parametrize(
    ("turns", "rules", "reason"),
    [
        ([], {}, Reason.NO_ANSWER),
        (conversation("q"), {}, Reason.NO_ANSWER),
        (conversation("q", ""), {}, Reason.NO_ANSWER),
        (conversation("q", "As ChatGPT, I"), {}, Reason.BLOCKED),
        (conversation("q", "Sorry, BAD word"), {"blocked": ("bad WORD",)}, Reason.BLOCKED),
        (
            conversation("Wie geht es dir heute?", "Danke, mir geht es heute sehr gut."),
            {"language": "en"},
            Reason.LANGUAGE,
        ),
    ],
)
def test_what_cannot_be_kept_is_dropped_with_its_reason(turns, rules, reason):
    cleaned = clean(turns, **rules)
    assert cleaned.conversation is None
    assert cleaned.notes[-1].reason is reason


def test_a_question_may_name_what_an_answer_must_not():
    assert clean(conversation("What is OpenAI?", "A company.")).conversation is not None


def test_the_system_prompt_stays():
    cleaned = clean([Turn(role="system", text=" Be nice. "), *conversation("q", "a")])
    assert cleaned.conversation.system == "Be nice."


def test_a_long_answer_about_errors_is_no_error():
    text = "Network error means that " + "the line is down. " * 40
    assert clean(conversation("q", text)).notes == ()


def pairs_of(*texts_):
    return Conversation(
        id="a",
        system=None,
        pairs=tuple(
            Pair(user=u, assistant=a) for u, a in zip(texts_[::2], texts_[1::2], strict=True)
        ),
    )


def test_copies_differ_by_spaces_and_case_and_greetings_are_no_copies():
    hello = ("Hi", "Hello! How can I help?")
    one = pairs_of(*hello, "Tell  me of\nCATS", "They purr.")
    copy = pairs_of("hi ", "hello! how CAN I help?", "tell me of cats", "They purr.")
    other = pairs_of(*hello, "Tell me of dogs", "They bark.")
    assert opening_digest(one) == opening_digest(copy)
    assert opening_digest(one) != opening_digest(other)
    long = "x" * 200
    assert opening_digest(pairs_of(long, "a")) == opening_digest(pairs_of(long, "a", "q", "b"))


FRAGMENTS = st.sampled_from(
    [
        *("<p>", "</p>", "<div>", "</div>", "<pre>", "</pre>", "<code>", "</code>", "<ul><li>"),
        *("</li></ul>", "&lt;p&gt;", "&lt;/p&gt;", "&amp;", "1 / 2", "\n", "\n\n", " ", "```", "`"),
        *("Copy code", "Copy3 chars / 1 words", "Copy", "3 chars", "a < b", "x", "<br>", "\\", "*"),
        *("<span>", "</span>", "<table><tr><td>", "</td></tr></table>", "\u00a0", "\u2028", "é"),
    ]
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.lists(FRAGMENTS, max_size=12).map("".join),
    st.lists(FRAGMENTS, max_size=8).map("".join).map(PAGE),
    st.text(max_size=20).map(html.escape).map(PAGE),
)
TURNS = st.lists(
    st.builds(Turn, role=st.sampled_from(["user", "assistant", "system"]), text=TEXTS), max_size=6
)


@settings(max_examples=100, deadline=None)
@given(TURNS)
def test_cleaning_is_idempotent(turns):
    item = {
        "id": "a",
        "conversations": [{"from": turn.role, "value": turn.text} for turn in turns],
    }
    first = clean_item(("here", 0, item), Settings())
    for line in first.lines:
        again = clean_item(("here", 0, json.loads(line)), Settings())
        assert again.lines == (line,)
        assert again.notes == ()


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [f"question {n}, answer {n} word" for n in range(100)]
    train_tokenizer(texts, 400, 2048).write(folder, VICUNA_CHAT_TEMPLATE)
    return folder


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 40)), min_size=1, max_size=12),
    most=st.integers(60, 300),
)
def test_splitting_loses_no_turn_and_fills_parts(tokenizer_folder, lengths, most):
    pairs = tuple(Pair(user="word " * user, assistant="word " * own) for user, own in lengths)
    whole = Conversation(id="a", system="S", pairs=pairs)
    parts = split_conversation(whole, tokenizer_folder, most, ChatTemplate.VICUNA)
    assert tuple(pair for part in parts for pair in part.pairs) == pairs
    encoder = encoder_in(tokenizer_folder, most, ChatTemplate.VICUNA)
    for part in parts:
        assert len(part.pairs) == 1 or len(encoder.pieces(part)) <= most
    for part, after in itertools.pairwise(parts):
        longer = replace(part, pairs=(*part.pairs, after.pairs[0]))
        assert len(encoder.pieces(longer)) > most


def test_parts_are_numbered_and_what_fits_stays_whole(tokenizer_folder):
    pairs = tuple(Pair(user=f"question {n}", assistant=f"answer {n} " * n) for n in range(1, 20))
    whole = Conversation(id="a", system="S", pairs=pairs)
    parts = split_conversation(whole, tokenizer_folder, 120, ChatTemplate.VICUNA)
    assert [part.id for part in parts] == [f"a_{n}" for n in range(len(parts))]
    assert split_conversation(whole, tokenizer_folder, 10**6, ChatTemplate.VICUNA) == [whole]


def test_splitting_by_the_models_template_goes_by_its_lengths_and_drops_what_it_refuses(
    tokenizer_folder, tmp_path
):
    own = tmp_path / "model"
    shutil.copytree(tokenizer_folder, own)
    (own / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('no system prompt') }}{% endif %}"
        "{{ '[' + m['role'] + ' says at some length] ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant says at some length] ' }}{% endif %}"
    )
    pairs = tuple(Pair(user=f"question {n}", assistant=f"answer {n} " * n) for n in range(1, 20))
    whole = Conversation(id="a", system=None, pairs=pairs)
    by = {template: split_conversation(whole, own, 400, template) for template in ChatTemplate}
    assert len(by[ChatTemplate.MODEL]) != len(by[ChatTemplate.VICUNA])
    for template, parts in by.items():
        encoder = encoder_in(own, 400, template)
        assert max(len(encoder.pieces(part)) for part in parts) <= 400
    settings_ = Settings(max_length=400, tokenizer=own, template=ChatTemplate.MODEL)
    turns = [
        {"from": "system", "value": "be brief"},
        {"from": "human", "value": "hi"},
        {"from": "gpt", "value": "hello"},
    ]
    outcome = clean_item(("f", 0, {"id": "b", "conversations": turns}), settings_)
    assert outcome.lines == ()
    assert outcome.notes[-1].reason is Reason.TEMPLATE
    assert "no system prompt" in outcome.notes[-1].detail


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


JSON_VALUES = st.recursive(
    st.none() | st.floats(allow_nan=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(items=st.lists(JSON_VALUES), block=st.integers(1, 40), is_ascii=st.booleans())
def test_arrays_read_as_json_reads_them_wherever_blocks_end(
    items, block, is_ascii, tmp_path_factory
):
    text = json.dumps(items, ensure_ascii=is_ascii, indent=block % 3 or None)
    path = tmp_path_factory.getbasetemp() / "array.json"
    write(path, f" {text}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.data.json_items._BLOCK_BYTES", block)
        found = [item for _, _, item in read_items(path)]
    assert found == json.loads(text)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("[1, 2", "item 2 is not JSON"),
        ("[1 2]", "item 1 is not JSON"),
        ("[1,]", "item 2 is not JSON"),
        ("[1] x", "text follows"),
        ('["a\nb"]', "item 1 is not JSON"),
        ('["never ends', "item 1 is not JSON"),
        ("[{]", "item 1 is not JSON"),
        (b'["\xff"]', r"not UTF-8 text \(byte 2\)"),
        ("{}\n{", "line 2 is not JSON"),
    ],
)
def test_broken_files_are_named_where_they_break(tmp_path, content, what):
    with pytest.raises(DataInvalid, match=what):
        list(read_items(write(tmp_path / "x.json", content)))
