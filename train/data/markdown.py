"""Turn an answer as chat pages keep it (HTML, labels of buttons) into Markdown; plain text stays.

Only a text that is HTML from its first to its last character is parsed: `a < b`, `List<int>` and a
sentence about `<p>` are not. Converted text is never taken for HTML again.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_BLOCK = r"(?:div|p|pre|ol|ul|h[1-6]|table|blockquote)"
_OPENS = re.compile(rf"\s*<{_BLOCK}(?:\s[^<>]*)?>")
_CLOSES = re.compile(rf"</{_BLOCK}>\s*\Z")
# The longest end that _CLOSES can match, spaces aside.
_MAX_CLOSE = len("</blockquote>")
_PAGE = re.compile(r"\A\s*(\d{1,4}) / (\d{1,4})(?=\s*\n\s*\S|<\w)")
_COPIED = re.compile(r"Copy\d+ chars / \d+ words")
_COPY_CODE = re.compile(
    r"^([ \t]*```)(?:[ \t]*\n)?[ \t]*([\w+#.-]*?)Copy code[ \t]*\n?", re.MULTILINE
)
_EMPTY_LINES_BEFORE = re.compile(r"\A\s*\n")


class HtmlUnreadable(Exception):
    """Markup that the parser refuses, or that is nested too deep."""


def is_html(text: str) -> bool:
    """Return whether the whole text is markup of a chat page."""
    if "<" not in text or _OPENS.match(text) is None:
        return False
    return _CLOSES.search(text.rstrip()[-_MAX_CLOSE:]) is not None


def clean_answer(text: str, *, keep_html: bool = False) -> tuple[str, bool]:
    """Return an answer as Markdown without the page's labels, and whether it was HTML.

    Raises HtmlUnreadable.
    """
    text = without_page_number(text)
    was_html = not keep_html and is_html(_COPIED.sub("", text))
    if was_html:
        from train.data.page import page_to_markdown  # 0.2 s, only where there is a page

        text = page_to_markdown(_COPIED.sub("", text))
    text = _until_stable(text, _without_labels)
    if not keep_html and is_html(text):
        # It was escaped in the page, so it is text about markup: in Markdown that has a backslash.
        text = "\\" + text
    return text, was_html


def clean_question(text: str) -> str:
    """Return a user's text without the page's number; users write no HTML but what they mean."""
    return without_page_number(text)


def without_page_number(text: str) -> str:
    """Remove "2 / 3", which pages put above turns that were asked or answered again.

    Only where a line break or markup follows: "1 / 2 of the people" and "3 / 4" are answers.
    """
    return _until_stable(text, _without_one_page_number)


def _without_one_page_number(text: str) -> str:
    found = _PAGE.match(text)
    if found is not None and int(found[1]) <= int(found[2]):
        text = text[found.end() :]
    return _EMPTY_LINES_BEFORE.sub("", text.rstrip())


def _without_labels(text: str) -> str:
    text = _COPY_CODE.sub(r"\1\2\n", _COPIED.sub("", text))
    return _without_one_page_number(text)


def _until_stable(text: str, change: Callable[[str], str]) -> str:
    """Apply a change that only shortens until nothing is left to do: cleaning is idempotent."""
    while (changed := change(text)) != text:
        text = changed
    return text
