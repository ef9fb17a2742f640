"""Say in which language a conversation is; the model comes with py3langid and needs no network."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from train.data.conversations import Conversation
from train.errors import LibraryMissing

# Code is English to any such model, and its words say nothing of the conversation's.
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
# Enough to tell languages apart (0.1 ms); more only costs time.
_MAX_TEXT = 2000


def language_of(conversation: Conversation) -> str:
    """Return the ISO 639-1 code of the language that most of the beginning is in."""
    parts: list[str] = []
    for pair in conversation.pairs:
        parts += [_CODE.sub(" ", pair.user), _CODE.sub(" ", pair.assistant)]
        if sum(map(len, parts)) >= _MAX_TEXT:
            break
    text = " ".join(parts)[:_MAX_TEXT]
    # All code: as good as any.
    return classifier()(text) if text.strip() else "en"


@functools.cache
def classifier() -> Callable[[str], str]:
    """Return what names the language of a text; raises LibraryMissing. Takes 1 s to load."""
    try:
        import py3langid
    except ModuleNotFoundError as error:
        raise LibraryMissing(
            "A filter by language needs py3langid, which is not installed.",
            "Install it: pip install -c constraints.txt py3langid, or leave out --language.",
        ) from error

    def classify(text: str) -> str:
        name: str = py3langid.classify(text)[0]
        return name

    return classify
