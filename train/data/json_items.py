"""Read the items of a JSON array or of JSON lines one by one: memory holds a block and an item.

An own reader, not a library's: it has to agree with `json` in what it accepts and in how it
decodes, which yajl's do not, and `raw_decode` leaves little to write.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from checkpoints.regular_files import open_regular
from train.errors import DataInvalid

EXAMPLE = '{"id": "1", "conversations": [{"from": "human", "value": "Hi"}, ...]}'
_BLOCK_BYTES = 1 << 20
# A text without an end, as of a lost quote, must not fill the memory before it is refused.
_MAX_ITEM = 256 << 20
# The longest that a cut escape or literal can be: \ud83d\ude00 is twelve characters.
_CUT = 16
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def read_items(
    path: Path, progress: Callable[[int], None] = lambda num_bytes: None
) -> Iterator[tuple[str, int, object]]:
    """Yield where an item stands, its index and the item; `progress` gets the bytes read so far.

    Raises DataInvalid at the first place that cannot be read, is not UTF-8 or is not JSON.
    """
    blocks = _blocks(path, progress)
    head = ""
    while not head.strip() and (block := next(blocks, None)) is not None:
        head += block
    if head.lstrip().startswith("["):
        yield from _array_items(path, _Text(head.lstrip()[1:], blocks))
    else:
        yield from _line_items(path, itertools.chain([head], blocks))


def not_json(where: str, problem: object) -> DataInvalid:
    """Return the error for text that is not JSON."""
    return DataInvalid(
        f"{where} is not JSON: {problem}.", f"Give ShareGPT conversations: {EXAMPLE}"
    )


def _blocks(path: Path, progress: Callable[[int], None]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    num_bytes = 0
    try:
        with open_regular(path) as file:
            while True:
                raw = file.read(_BLOCK_BYTES) or b""
                start = num_bytes - len(decoder.getstate()[0])
                text = decoder.decode(raw, final=not raw)
                num_bytes += len(raw)
                progress(num_bytes)
                yield text
                if not raw:
                    return
    except OSError as error:
        raise DataInvalid(
            f"{path} cannot be read: {error.strerror}.", "Give the path of a .json or .jsonl file."
        ) from error
    except UnicodeDecodeError as error:
        raise DataInvalid(
            f"{path} is not UTF-8 text (byte {start + error.start}).", "Convert it to UTF-8."
        ) from error


def _line_items(path: Path, blocks: Iterator[str]) -> Iterator[tuple[str, int, object]]:
    index = 0
    for number, line in enumerate(_lines(path, blocks), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield where, index, json.loads(line)
            except (ValueError, RecursionError) as error:  # a number may have too many digits
                raise not_json(where, error) from error
            index += 1


def _lines(path: Path, blocks: Iterator[str]) -> Iterator[str]:
    rest = ""
    for block in blocks:
        # Not splitlines(): JSON strings may hold U+2028, which is no line end to JSON.
        *lines, rest = (rest + block).split("\n")
        yield from lines
        if len(rest) > _MAX_ITEM:
            raise not_json(str(path), f"a line is longer than {_MAX_ITEM >> 20} MiB")
    yield rest


def _array_items(path: Path, text: _Text) -> Iterator[tuple[str, int, object]]:
    for index in itertools.count():
        where = f"{path}, item {index + 1}"
        found = text.peek()
        if index == 0 and found == "]":
            text.skip()
            break
        yield where, index, text.value(where)
        found = text.peek()
        if found not in (",", "]"):
            raise not_json(where, "no comma or bracket follows it")
        text.skip()
        if found == "]":
            break
    if text.peek():
        raise not_json(str(path), "text follows the array")


class _Text:
    """Text that is not yet consumed; more of the file is read where it ends."""

    def __init__(self, text: str, blocks: Iterator[str]) -> None:
        self._text = text
        self._blocks = blocks
        self._at = 0

    def peek(self) -> str:
        """Return the next character that is no space, nothing at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._at = space.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        self._at += 1

    def value(self, where: str) -> object:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or (
                    error.pos >= len(self._text) - _CUT
                )
                if not is_cut or len(self._text) - self._at > _MAX_ITEM or not self._more():
                    raise not_json(where, error.msg) from error
                continue
            except (ValueError, RecursionError) as error:
                raise not_json(where, error) from error
            # A number may go on in the next block: what is left may be the "e+" of its exponent.
            if end > len(self._text) - _CUT and self._more():
                continue
            self._at = end
            return value

    def _more(self) -> bool:
        """Read as much again as is held, so that a long item is tried only a few times."""
        held = self._text[self._at :]
        parts, num_new = [held], 0
        while num_new <= len(held) and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            num_new += len(block)
        if not num_new:
            return False
        self._text, self._at = "".join(parts), 0
        return True
