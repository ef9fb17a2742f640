"""Valid documents with one thing wrong: a node replaced, dropped or renamed, or raw text."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from checkpoints.errors import CheckpointError
from orchestrator.errors import OrchestratorError
from train.errors import TrainError

Document = dict[str, Any] | list[Any]

# A few by default, as many as the profile says where one was asked for.
fuzzed = settings(
    max_examples=25 if settings.default.max_examples == 100 else settings.default.max_examples,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
DEEP = 1200  # more than Python's parsers go down
_LONG = "a" * 10_000
# What parsers of JSON and YAML stumble over: texts are written as they are, in place of a value.
RAW = (
    *("1" * 5000, "1e999", "-1e999", "NaN", "Infinity", "-0", "1E400", "0x10", "1_000"),
    *(
        "[" * DEEP + "]" * DEEP,
        '{"a":' * DEEP + "1" + "}" * DEEP,
        "[" * DEEP,
        '"\\ud800"',
        '"\\u0000"',
    ),
    *('"', "{", "]", "\x00", "null", "tru"),
)
VALUES: tuple[object, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**18, 1e308, -1e308, 5e-324, 0.1),
    *("", " ", "0", "\0", "a\nb", "\x1b[31m", "\ud800", "\u202e", "\N{GRINNING FACE}", _LONG),
    *(
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        ".",
        "a/../b",
        "file:///etc",
        "s3://[",
        "s3://b\n/x",
    ),
    *("${HOME}", "$(id)", "`id`", "; id #", "'\"", "<script>", "%00", "=1+1", "~nobody-here/x"),
    *("9" * 400 + "d", "9" * 400 + "h", "9" * 400 + " steps", "0.0000001s", "1e5", "NaN", "-1s"),
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-02-30T00:00:00Z", "now"),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": 1}}, ["a"] * 1000),
)
values = st.sampled_from(VALUES).map(copy.deepcopy) | st.text(max_size=8) | st.integers()


@st.composite
def documents(draw: st.DrawFn, valid: Document) -> Document:
    """Draw the document with up to three of its nodes changed."""
    changed = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, changed, draw(values))
    return changed


@st.composite
def json_texts(draw: st.DrawFn, valid: Document) -> bytes:
    """Draw the document as JSON, with nodes changed, with raw text in it, or with bytes changed."""
    how = draw(st.sampled_from(["nodes", "raw", "bytes", "twice"]))
    if how == "nodes":
        return _dump(draw(documents(valid)))
    if how == "raw":
        changed = copy.deepcopy(valid)
        _change(draw, changed, "@raw@", only_replace=True)
        return _dump(changed).replace(b'"@raw@"', draw(st.sampled_from(RAW)).encode())
    text = _dump(valid)
    if how == "twice" and isinstance(valid, dict):
        name = draw(st.sampled_from(sorted(valid)))
        return text[:-1] + f", {json.dumps(name)}: {json.dumps(valid[name])}}}".encode()
    return draw(damaged(text))


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """Draw the bytes with some cut out, and others put in their place."""
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 12)) | st.just(len(text)))
    return (
        text[:start] + draw(st.binary(max_size=8) | st.sampled_from([b"\xff", b"\0"])) + text[end:]
    )


def foreseen(error: Exception) -> None:
    """Hold that an error is one of those that people see as two lines, with its exit code."""
    assert getattr(error, "exit_code", 2) == 2
    assert isinstance(error, (OrchestratorError, CheckpointError, TrainError)), repr(error)[:500]
    assert error.what.strip()


def _change(
    draw: st.DrawFn, document: Document, value: object, *, only_replace: bool = False
) -> None:
    places = list(_places(document))
    if not places:
        return
    holder, key = draw(st.sampled_from(places))
    act = "replace" if only_replace else draw(st.sampled_from(["replace"] * 3 + ["drop", "rename"]))
    if act == "replace":
        holder[key] = value
    elif act == "drop":
        del holder[key]
    elif isinstance(holder, dict):
        holder[draw(st.sampled_from(["x", f"{key}s", "a.b", "\n", "0"]))] = holder.pop(key)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every node but the root, as what holds it and its place there."""
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    else:
        return
    for key, inner in items:
        yield node, key
        yield from _places(inner)


def _dump(document: Document) -> bytes:
    return json.dumps(document).encode()
