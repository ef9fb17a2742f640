"""Say in which language a conversation is; the model comes with py3langid and needs no network."""

from __future__ import annotations

import functools
import re
from typing import Any

from train.data.conversations import Conversation
from train.errors import DataInvalid, LibraryMissing

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
    return str(_library().classify(text)[0]) if text.strip() else "en"


def check_language(code: str) -> None:
    """Raise DataInvalid for a code that no text would get, LibraryMissing without py3langid."""
    known = sorted(name for name, _ in _library().rank("a"))
    if code not in known:
        raise DataInvalid(
            f"{code!r} is no language that can be told.", f"Give one of {', '.join(known)}."
        )


@functools.cache
def _library() -> Any:  # noqa: ANN401  # the module ships no types
    """Return py3langid, which takes 1 s to load."""
    try:
        import py3langid
    except ModuleNotFoundError as error:
        raise LibraryMissing(
            f"A filter by language needs py3langid ({error}).",
            "Install it: pip install -c constraints.txt py3langid, or leave out --language.",
        ) from error
    return py3langid
