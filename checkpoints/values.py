"""Python values as a manifest's state holds them: JSON that comes back as the very same value.

Numbers, strings, None, lists and dicts stand as they are, as the trainer's own state does; a tuple
becomes {"__tuple__": [...]}. What would come back as something else is refused.
"""

from __future__ import annotations

import math

from pydantic import JsonValue

from checkpoints.errors import RecordInvalid

# JSON has no tuples, and `random.setstate` takes nothing else.
_TUPLE = "__tuple__"


def to_json(name: str, value: object) -> JsonValue:
    """Return what the manifest holds for the value `name`; raise RecordInvalid."""
    # By exact type: an enum that is a str, or a NumPy float, would come back without its class.
    kind = type(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _refused(name, str(value))
    if value is None or kind in (bool, int, float, str):
        return value  # type: ignore[return-value]  # it is one of these
    if isinstance(value, (list, tuple)) and kind in (list, tuple):
        items = [to_json(name, item) for item in value]
        return {_TUPLE: items} if kind is tuple else items
    if isinstance(value, dict) and kind is dict:
        return _dict_to_json(name, value)
    raise _refused(name, f"a {kind.__name__}")


def from_json(value: JsonValue) -> object:
    """Return the value that `to_json` was given."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if isinstance(value, dict):
        items = value.get(_TUPLE)
        if isinstance(items, list):
            return tuple(from_json(item) for item in items)
        return {key: from_json(item) for key, item in value.items()}
    return value


def _dict_to_json(name: str, value: dict[object, object]) -> JsonValue:
    found: dict[str, JsonValue] = {}
    for key, item in value.items():
        if not isinstance(key, str) or key == _TUPLE:
            raise _refused(name, f"a dict with the key {key!r}")
        found[key] = to_json(name, item)
    return found


def _refused(name: str, what: str) -> RecordInvalid:
    return RecordInvalid(
        f"{name} holds {what}, which the manifest cannot",
        "Save finite numbers, strings, None, and lists, tuples and dicts of them; "
        "make a tensor of anything else.",
    )
