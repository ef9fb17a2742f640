"""Read a spec file: YAML with overrides, every mistake named by its key, paths resolved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from checkpoints.regular_files import read_regular
from orchestrator.errors import SpecError
from orchestrator.spec import RunSpec, resolve_store, suggest

MAX_SPEC_BYTES = 1_000_000
# With aliases a file of 400 bytes can stand for billions of values.
_MAX_VALUES = 100_000
# Python refuses to write numbers of 4,300 digits, which YAML can give as hexadecimal ones.
_MOST_DIGITS = 100
# What PyYAML's constructors raise for values that do not fit their tag, as `!!bool maybe`.
_NOT_YAML = (
    *(yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError),
    ArithmeticError,
)


class _SpecLoader(yaml.SafeLoader):
    """The safe loader, but a key given twice is an error: PyYAML would keep the last silently.

    And a key is what is written: to PyYAML (YAML 1.1) the key `on` is true. Aliases count as often
    as they stand there.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        node = super().compose_node(parent, index)
        if node is not None and id(node) not in self._sizes:
            inner = [] if isinstance(node, yaml.ScalarNode) else node.value
            parts = [
                one for part in inner for one in (part if isinstance(part, tuple) else (part,))
            ]
            # Without a size is what is not complete: it holds itself.
            size = 1 + sum(self._sizes.get(id(part), _MAX_VALUES) for part in parts)
            if size > _MAX_VALUES:
                raise yaml.YAMLError(f"it stands for more than {_MAX_VALUES:,} values")
            self._sizes[id(node)] = size
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _MOST_DIGITS:
            raise yaml.YAMLError(f"a number has more than {_MOST_DIGITS} digits")
        return int(super().construct_yaml_int(node))

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:bool":
                key.tag = "tag:yaml.org,2002:str"
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"the key {min(twice)} is given twice")
        return super().construct_mapping(node, deep)


_SpecLoader.add_constructor("tag:yaml.org,2002:int", _SpecLoader.construct_yaml_int)


def load_spec(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read the spec at `path`, apply `key.path=value` overrides, resolve paths, validate.

    Paths of model and data are relative to the spec's folder; the store's to the current folder.

    Raises:
        SpecError: with the offending key and value.
    """
    document = _read_yaml(path)
    for override in overrides:
        _apply_override(document, override)
    try:
        spec = RunSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError(*_explain(path, error)) from error
    return _resolve_paths(spec, path.resolve().parent)


def apply_overrides(spec: RunSpec, overrides: Sequence[str]) -> RunSpec:
    """Return a resolved spec with `key.path=value` overrides applied.

    Raises:
        SpecError: with the offending key and value.
    """
    document = spec.model_dump(mode="json")
    for override in overrides:
        _apply_override(document, override)
    try:
        return RunSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError(*_explain("the run's spec", error)) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = read_regular(path, MAX_SPEC_BYTES).decode()
    except OSError as error:
        raise SpecError(
            f"Cannot read the spec {path}: {error.strerror}.",
            "Give a file of a few dozen lines, as examples/quickstart.yaml.",
        ) from error
    except UnicodeDecodeError as error:
        raise SpecError(f"The spec {path} is not UTF-8 text.", "Save it as UTF-8.") from error
    try:
        document = yaml.load(text, Loader=_SpecLoader)
    except _NOT_YAML as error:
        raise SpecError(
            f"The spec {path} is not YAML: {_said(error)}", "Correct it there."
        ) from error
    if not isinstance(document, dict):
        raise SpecError(
            f"The spec {path} holds no mapping of keys.", "See examples/quickstart.yaml."
        )
    return document


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise SpecError(f"--set {override!r} is not key.path=value.", "Write --set train.seed=1.")
    try:
        value = yaml.load(text, Loader=_SpecLoader)
    except _NOT_YAML as error:
        raise SpecError(
            f"--set {override!r:.80}: the value is not YAML: {_said(error)}", "Quote it."
        ) from error
    *parents, last = key.split(".")
    section = document
    for parent in parents:
        inner = section.get(parent)
        if inner is None:
            inner = section[parent] = {}
        if not isinstance(inner, dict):
            raise SpecError(f"--set {override!r}: {parent} has no keys.", "Check the key's path.")
        section = inner
    section[last] = value


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _explain(path: Path | str, error: ValidationError) -> tuple[str, str]:
    # A misspelt key also leaves its right spelling missing: name the typing error first.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"] if part not in ("tuple[str, ...]",)]
    key = ".".join(location) or "the file"
    if first["type"] == "extra_forbidden":
        known = list(_keys_at(location[:-1]))
        close = suggest(location[-1], known)
        return (
            f"{path}: unknown key {key}{close}" + ("" if close else "."),
            f"Keys there: {', '.join(known)}.",
        )
    if first["type"] == "missing":
        return f"{path}: the key {key} is missing.", "Add it; examples/quickstart.yaml shows each."
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = "" if isinstance(given, dict) or repr(given) in message else f" (given: {given!r:.80})"
    return f"{path}: {key}: {message}{shown}.", "Correct the value."


def _keys_at(location: Sequence[str]) -> Iterator[str]:
    model: type[BaseModel] = RunSpec
    for part in location:
        if part.isdigit():
            continue
        model = _section_of(model.model_fields[part].annotation) or model
    yield from model.model_fields


def _section_of(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401  # a type expression
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_section_of(argument) for argument in getattr(annotation, "__args__", ()))
    return next((section for section in inner if section is not None), None)


def _resolve_paths(spec: RunSpec, folder: Path) -> RunSpec:
    try:
        return _with_paths(spec, folder)
    except (OSError, RuntimeError) as error:  # too long, or the home folder of nobody
        raise SpecError(f"A path of the spec cannot be used: {error}.", "Correct it.") from error


def _with_paths(spec: RunSpec, folder: Path) -> RunSpec:
    base = folder / spec.model.base
    train = folder / spec.data.train
    is_url = "://" in spec.data.train
    is_hub_id = not base.exists() and not spec.is_local
    return spec.model_copy(
        update={
            "store": resolve_store(spec.store),
            "model": spec.model
            if is_hub_id
            else spec.model.model_copy(update={"base": str(base.resolve())}),
            "data": spec.data
            if is_url
            else spec.data.model_copy(update={"train": str(train.resolve())}),
        }
    )
