"""Convert the markup of a chat page to Markdown; imported (0.2 s) only where there is any."""

from __future__ import annotations

import re

from bs4 import BeautifulSoup, Tag
from bs4.exceptions import ParserRejectedMarkup
from markdownify import MarkdownConverter

from train.data.markdown import HtmlUnreadable

# Spans carry colours of code and no meaning; parsing them takes most of the time.
_SPAN = re.compile(r"</?span(?:\s[^<>]*)?>")
_LABEL = re.compile(r"[\w+#.-]{1,20}")
_FENCE = re.compile(r"`{3,}")
# markdownify takes the square of a run of spaces: 500,000 of them, minutes. No line is as wide.
_WIDE = re.compile(r"(\s{500})\s+")
_BUTTON = "Copy code"
_KATEX = 'class="katex'


def page_to_markdown(html: str) -> str:
    """Return the page as Markdown; raises HtmlUnreadable."""
    try:
        html = _WIDE.sub(r"\1", html)
        if _KATEX in html:
            html = _with_formulas(html)
        markdown: str = _CONVERTER.convert(_SPAN.sub("", html))
    # html.parser asserts on some broken declarations.
    except (RecursionError, ParserRejectedMarkup, AssertionError) as error:
        raise HtmlUnreadable(type(error).__name__) from error
    return markdown.strip()


class _Converter(MarkdownConverter):
    """Markdownify, with the code blocks of chat pages: a label, a button and the code."""

    def convert_pre(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        code = el.find("code")
        inner = code.get_text() if isinstance(code, Tag) else el.get_text()
        label = el.get_text().removesuffix(inner).replace(_BUTTON, "").strip()
        inner = inner.strip("\n")
        if not inner.strip():
            return ""
        language = _language_of(code) if isinstance(code, Tag) else ""
        if not language and _LABEL.fullmatch(label):
            language = label
        fence = "`" * max([3, *(len(run) + 1 for run in _FENCE.findall(inner))])
        return f"\n\n{fence}{language}\n{inner}\n{fence}\n\n"


# Escapes would spell `snake\_case`, which no assistant says.
_CONVERTER = _Converter(
    heading_style="ATX",
    bullets="-",
    escape_asterisks=False,
    escape_underscores=False,
    escape_misc=False,
)


def _language_of(code: Tag) -> str:
    names = code.get_attribute_list("class")
    found = (name.removeprefix("language-") for name in names if name.startswith("language-"))
    return next(found, "")


def _with_formulas(html: str) -> str:
    """Put TeX where KaTeX has drawn a formula, which is there twice: for eyes and for readers."""
    soup = BeautifulSoup(html, "html.parser")
    for drawn in soup.select(".katex"):
        source = drawn.find("annotation", encoding="application/x-tex")
        if isinstance(source, Tag):
            parent = drawn.parent
            is_block = parent is not None and "katex-display" in parent.get_attribute_list("class")
            sign = "$$" if is_block else "$"
            drawn.replace_with(f"{sign}{source.get_text().strip()}{sign}")
    return str(soup)
