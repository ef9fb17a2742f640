"""Turn an answer as chat pages keep it (HTML, labels of buttons) into Markdown; plain text stays.

Only a text that is HTML from its first to its last character is parsed: `a < b`, `List<int>` and a
sentence about `<p>` are not. Converted text is never taken for HTML again.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_BLOCK = r"(?:div|p|pre|ol|ul|h[1-6]|table|blockquote)"
_OPENS = re.compile(rf"\s*<{_BLOCK}(?:\s[^<>]*)?>")
_CLOSES = re.compile(rf"</{_BLOCK}>\s*\Z")
# The longest end that _CLOSES can match, spaces aside.
_MAX_CLOSE = len("</blockquote>")
# Spans carry colours of code and no meaning; parsing them takes most of the time.
_SPAN = re.compile(r"</?span(?:\s[^<>]*)?>")
_PAGE = re.compile(r"\A\s*(\d{1,4}) / (\d{1,4})(?=\s*\n\s*\S|<\w)")
_COPIED = re.compile(r"Copy\d+ chars / \d+ words")
_COPY_CODE = re.compile(r"^([ \t]*```)[ \t]*\n?[ \t]*([\w+#.-]*?)Copy code[ \t]*\n?", re.MULTILINE)
_EMPTY_LINES_BEFORE = re.compile(r"\A\s*\n")
_LABEL = re.compile(r"[\w+#.-]{1,20}")
_BUTTON = "Copy code"


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
        text = _convert()(_SPAN.sub("", _COPIED.sub("", text)))
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


@functools.cache
def _convert() -> Callable[[str], str]:
    # 0.2 s of import, only where there is HTML.
    from bs4 import Tag
    from bs4.exceptions import ParserRejectedMarkup
    from markdownify import MarkdownConverter

    def language_of(code: Tag) -> str:
        names = code.get_attribute_list("class")
        found = (name.removeprefix("language-") for name in names if name.startswith("language-"))
        return next(found, "")

    class Converter(MarkdownConverter):
        """Markdownify, with the code blocks of chat pages: a label, a button and the code."""

        def convert_pre(self, el: Tag, text: str, parent_tags: set[str]) -> str:
            code = el.find("code")
            inner = code.get_text() if isinstance(code, Tag) else el.get_text()
            label = el.get_text().removesuffix(inner).replace(_BUTTON, "").strip()
            inner = inner.strip("\n")
            if not inner.strip():
                return ""
            language = language_of(code) if isinstance(code, Tag) else ""
            if not language and _LABEL.fullmatch(label):
                language = label
            runs = (len(run) for run in re.findall(r"`{3,}", inner))
            fence = "`" * max([3, *(length + 1 for length in runs)])
            return f"\n\n{fence}{language}\n{inner}\n{fence}\n\n"

    # Escapes would spell `snake\_case`, which no assistant says.
    converter = Converter(
        heading_style="ATX",
        bullets="-",
        escape_asterisks=False,
        escape_underscores=False,
        escape_misc=False,
    )

    def convert(html: str) -> str:
        try:
            markdown: str = converter.convert(html)
        # html.parser asserts on some broken declarations.
        except (RecursionError, ParserRejectedMarkup, AssertionError) as error:
            raise HtmlUnreadable(type(error).__name__) from error
        return markdown.strip()

    return convert
