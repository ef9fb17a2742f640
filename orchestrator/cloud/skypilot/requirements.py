"""Say what a node lacks: `python -m orchestrator.cloud.skypilot.requirements EXTRA...`.

Prints the requirements of this distribution and of the given extras that this environment does not
meet, for `uv pip install -r`. Runs where only our wheel is installed, so on the standard library
alone; what it cannot judge it prints, and the installer decides.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

_DISTRIBUTION = "spot-orchestrator"
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)\s*(?:\[(?P<extras>[^]]*)])?\s*\(?(?P<versions>[^;)]*)\)?\s*(?:;(?P<marker>.*))?"
)
_SPECIFIER = re.compile(r"(>=|<=|==|!=|>|<)\s*([\w.]+)(\.\*)?")
# Pre-releases do not match: which of them a range admits is the installer's business.
_VERSION = re.compile(r"v?(\d+(?:\.\d+)*)(?:\.?post(\d+))?(?:\+[\w.]+)?")
_CLAUSE = re.compile(r"(extra|python_version)\s*(>=|<=|==|!=|>|<)\s*['\"]([^'\"]+)['\"]")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_Version = tuple[tuple[int, ...], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One line of a distribution's metadata, without its marker."""

    name: str
    extras: tuple[str, ...]
    versions: str

    def __str__(self) -> str:
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        return f"{self.name}{extras}{self.versions}"


def missing(extras: tuple[str, ...], of: str = _DISTRIBUTION) -> list[str]:
    """Return what is not met of a distribution's requirements, each once."""
    wanted = (needed for needed in _needs(of, extras) if not is_met(needed))
    return list(dict.fromkeys(str(needed) for needed in wanted))


def is_met(needed: Requirement) -> bool:
    """Say whether this environment has it, in a version that it admits, and its extras' needs."""
    try:
        version = distribution(needed.name).version
    except PackageNotFoundError:
        return False
    return admits(needed.versions, version) and all(
        is_met(further) for further in _needs(needed.name, needed.extras, base=False)
    )


def admits(versions: str, version: str) -> bool:
    """Say whether `version` lies in a range such as ">=2.13,<2.14"; False in doubt."""
    have = _parse(version)
    wanted = [one.strip() for one in versions.split(",") if one.strip()]
    return not wanted or (have is not None and all(_fits(have, one) for one in wanted))


def _needs(of: str, extras: tuple[str, ...], *, base: bool = True) -> Iterator[Requirement]:
    """Yield what a distribution requires: always (with `base`), and for each of the extras."""
    for line in distribution(of).requires or ():
        match = _REQUIREMENT.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{of} requires {line!r}, which cannot be read")
        marker = (match["marker"] or "").strip()
        asked = ("", *extras) if base else extras
        if any(_holds(marker, extra) for extra in asked) and (base or "extra" in marker):
            names = (match["extras"] or "").split(",")
            yield Requirement(
                name=match["name"],
                extras=tuple(name.strip() for name in names if name.strip()),
                versions=match["versions"].replace(" ", ""),
            )


def _holds(marker: str, extra: str) -> bool:
    """Say whether a marker holds for an extra ("" for none); what is not understood holds."""
    if not marker:
        return True
    return any(
        all(_clause_holds(clause.strip("() "), extra) for clause in one.split(" and "))
        for one in marker.split(" or ")
    )


def _clause_holds(clause: str, extra: str) -> bool:
    match = _CLAUSE.fullmatch(clause)
    if match is None:
        return True
    variable, compare, value = match.groups()
    if variable == "extra":
        return _COMPARE[compare](_normal(extra), _normal(value))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return admits(f"{compare}{value}", python)


def _fits(have: _Version, specifier: str) -> bool:
    match = _SPECIFIER.fullmatch(specifier)
    wanted = None if match is None else _parse(match[2])
    if match is None or wanted is None:
        return False
    compare = match[1]
    if match[3]:  # == 2.13.*, or !=
        length = len(wanted[0])
        have, wanted = (have[0][:length], 0), (wanted[0], 0)
    elif compare in ("<", ">") and wanted[1] == 0:
        have = (have[0], 0)  # 2.8.3.post1 is neither before nor after 2.8.3 in a range's sense
    return _COMPARE[compare](_padded(have), _padded(wanted))


def _parse(version: str) -> _Version | None:
    match = _VERSION.fullmatch(version)
    if match is None:
        return None
    return tuple(int(part) for part in match[1].split(".")), 1 + int(match[2]) if match[2] else 0


def _padded(version: _Version) -> _Version:
    release, post = version
    return release + (0,) * (8 - len(release)), post


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    for line in missing(tuple(sys.argv[1:])):
        sys.stdout.write(f"{line}\n")
