"""The files by which SkyPilot's API server of this machine loads our plugin, and what to change.

plugins.yaml is the server's own, remote_plugins.yaml that of the jobs controllers it starts, and
controller_wheel_path a folder whose wheels it installs there (sky/server/plugins.py, of 0.14.1).
The user's entries, comments and keys stay. No code of SkyPilot: `doctor` looks in no time.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from orchestrator.cloud.skypilot.wheel import WHEEL_PREFIX, build_wheel
from orchestrator.errors import UsageError
from orchestrator.home import home

PLUGIN_CLASS = "orchestrator.cloud.plugin.OrchestratePlugin"
_SERVER_FILE = ("SKYPILOT_SERVER_PLUGINS_CONFIG", "~/.sky/plugins.yaml")
_REMOTE_FILE = ("SKYPILOT_SERVER_REMOTE_PLUGINS_CONFIG", "~/.sky/remote_plugins.yaml")
_CONFIG_FILE = ("SKYPILOT_GLOBAL_CONFIG", "~/.sky/config.yaml")
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "0.0.0.0", "::1")
_ENTRY = f"class: {PLUGIN_CLASS}"
_WHEELS_KEY = "controller_wheel_path"
# What our strategy does in a controller, beyond what every node does.
_CONTROLLER_EXTRAS = ("notify",)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChange:
    """A configuration file as it is, None without one, and as it is to be."""

    path: Path
    before: str | None
    after: str

    def diff(self) -> str:
        """Return the change as a unified diff."""
        old, new = (self.before or "").splitlines(True), self.after.splitlines(True)
        name = str(self.path)
        source = "/dev/null" if self.before is None else name
        return "".join(difflib.unified_diff(old, new, source, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelChange:
    """A wheel of this program to put into a folder, in place of older ones of it."""

    folder: Path
    name: str
    outdated: tuple[Path, ...]

    def diff(self) -> str:
        """Return which files come and go."""
        gone = [f"- {path}\n" for path in self.outdated]
        return "".join([*gone, f"+ {self.folder / self.name}\n"])


Change = TextChange | WheelChange


def plan_changes() -> list[Change]:
    """Return what is to change on this machine, nothing where the plugin is set up.

    Raises:
        UsageError: a file cannot be read, or makes no sense.
        MissingDependency: there is no wheel to be had of this program.
    """
    server_file, remote_file = _path(*_SERVER_FILE), _path(*_REMOTE_FILE)
    before = _read(server_file)
    after = _with_entry(server_file, before)
    folder = _load(server_file, after).get(_WHEELS_KEY)
    if folder is None:
        folder = str(home() / "controller-wheels")
        after = _with_key(server_file, after, _WHEELS_KEY, folder)
    remote = _read(remote_file)
    found: list[Change] = [
        TextChange(path=path, before=old, after=new)
        for path, old, new in (
            (server_file, before, after),
            (remote_file, remote, _with_entry(remote_file, remote)),
        )
        if old != new
    ]
    return [*found, *_wheel_changes(Path(folder).expanduser())]


def apply(changes: list[Change]) -> Iterator[Path]:
    """Make the changes and yield each file written; what was there before is kept as *.bak.

    The wheel goes first: without one, SkyPilot does not give controllers the rest either.
    """
    for change in sorted(changes, key=lambda change: isinstance(change, TextChange)):
        if isinstance(change, WheelChange):
            yield build_wheel(change.folder, _CONTROLLER_EXTRAS)
            for path in change.outdated:
                path.unlink(missing_ok=True)
            continue
        change.path.parent.mkdir(parents=True, exist_ok=True)
        if change.before is not None:
            _replace(_backup(change.path), change.before)
        _replace(change.path, change.after)
        yield change.path


def require_local_server() -> None:
    """Raise UsageError where the API server that this machine uses is on another."""
    config = _load(path := _path(*_CONFIG_FILE), _read(path)).get("api_server")
    configured = config.get("endpoint") if isinstance(config, dict) else None
    url = os.environ.get("SKYPILOT_API_SERVER_ENDPOINT") or configured
    if url and urlsplit(str(url)).hostname not in _LOCAL_HOSTS:
        raise UsageError(
            "SkyPilot's API server is on another machine, and loads its plugins there.",
            "Run orchestrate doctor --fix there, as the user that it runs as.",
        )


def _path(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable, default)).expanduser()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _load(path: Path, text: str | None) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text or "")
    except yaml.YAMLError as error:
        raise _unreadable(path, error) from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not isinstance(found.get("plugins") or [], list):
        raise _unreadable(path, "it is no mapping with a list of plugins")
    return found


def _unreadable(path: Path, why: object) -> UsageError:
    return UsageError(f"{path}: {' '.join(str(why).split())[:200]}", "Correct it, or move it away.")


def _with_entry(path: Path, text: str | None) -> str:
    """Return the file's text with our plugin in it."""
    found = _load(path, text)
    entries = found.get("plugins") or []
    if any(isinstance(entry, dict) and entry.get("class") == PLUGIN_CLASS for entry in entries):
        return text or ""
    wanted = {**found, "plugins": [{"class": PLUGIN_CLASS}, *entries]}
    return _edited(path, text or "", wanted, _insert_entry)


def _with_key(path: Path, text: str, key: str, value: str) -> str:
    line = yaml.safe_dump({key: value}, width=1000)
    wanted = {key: value, **_load(path, text)}
    return _edited(path, text, wanted, lambda text: _insert_line(text, line))


def _edited(
    path: Path, text: str, wanted: dict[str, Any], edit: Callable[[str], str | None]
) -> str:
    """Return the text as edited; written anew, without comments, where the edit misses `wanted`."""
    edited = edit(text)
    try:
        if edited is not None and yaml.safe_load(edited) == wanted:
            return edited
    except yaml.YAMLError:
        pass
    return yaml.safe_dump(wanted, sort_keys=False)


def _insert_entry(text: str) -> str | None:
    root = yaml.compose(text, yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        return f"{_closed(text)}plugins:\n- {_ENTRY}\n" if root is None else None
    plugins = next((value for key, value in root.value if key.value == "plugins"), None)
    if plugins is None:
        return f"{_closed(text)}plugins:\n- {_ENTRY}\n"
    begin = plugins.start_mark
    if isinstance(plugins, yaml.SequenceNode) and not plugins.flow_style:
        # In front of the first: where the last one ends, comments may belong to what follows.
        indent = " " * begin.column
        return f"{text[: begin.index]}- {_ENTRY}\n{indent}{text[begin.index :]}"
    if isinstance(plugins, yaml.SequenceNode):
        comma = ", " if plugins.value else ""
        return f"{text[: begin.index + 1]}{{{_ENTRY}}}{comma}{text[begin.index + 1 :]}"
    return None


def _insert_line(text: str, line: str) -> str:
    root = yaml.compose(text, yaml.SafeLoader)
    begin = 0 if root is None else root.start_mark.index
    return f"{text[:begin]}{line}{text[begin:]}"


def _closed(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"


def _wheel_changes(folder: Path) -> Iterator[WheelChange]:
    with tempfile.TemporaryDirectory() as scratch:
        name = build_wheel(Path(scratch), _CONTROLLER_EXTRAS).name
    found = sorted(folder.glob(f"{WHEEL_PREFIX}*.whl"))
    outdated = tuple(path for path in found if path.name != name)
    if outdated or not found:
        yield WheelChange(folder=folder, name=name, outdated=outdated)


def _backup(path: Path) -> Path:
    """Return a free name: an older backup is of what the user had first."""
    candidate, number = path.with_name(f"{path.name}.bak"), 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}.bak{number}")
    return candidate


def _replace(path: Path, text: str) -> None:
    """Write in one step, through a link if it is one, with the mode that was there."""
    target = path.resolve()
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=target.parent, prefix=f".{path.name}-", delete=False
    ) as file:
        file.write(text)
    Path(file.name).chmod(mode)
    Path(file.name).replace(target)
