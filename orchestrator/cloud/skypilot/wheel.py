"""Pack this program, as it runs here, into a wheel for nodes and controllers.

SkyPilot installs a wheel on a controller once per file name, so the name carries a hash of what is
in it. No build tool is asked: there may be none, and no sources but the packages themselves.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import orchestrator
from orchestrator.errors import MissingDependency

DISTRIBUTION = "spot-orchestrator"
# A wheel's name starts with it; anything of ours in a folder of wheels is found by it.
WHEEL_PREFIX = "spot_orchestrator-"
_PACKAGES = ("orchestrator", "train", "checkpoints")
# In a checkout SkyPilot's tasks lie beside the packages; in the wheel that folder's name is taken.
_TASKS, _TASKS_PACKED = "sky", "orchestrator/tasks"
# By which nodes install: attempts of one run, weeks apart, are to compute with the same libraries.
_CONSTRAINTS = "constraints.txt"
_EARLIEST = (1980, 1, 1, 0, 0, 0)
_WHEEL = "Wheel-Version: 1.0\nGenerator: orchestrate\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def build_wheel(folder: Path, extras: Collection[str] = ()) -> Path:
    """Write the wheel of the running program into `folder` and return its path.

    The same content gives the same name and the same bytes, whatever packs it. What `extras` need
    is required by the wheel itself: SkyPilot installs wheels on controllers without their extras.

    Raises:
        MissingDependency: this program was not installed, so its dependencies are not known.
    """
    packed = _packages()
    metadata = _metadata()
    metadata["METADATA"] = with_extras(metadata["METADATA"], extras)
    version = f"{orchestrator.__version__}+{_digest({**packed, **metadata})}"
    stem = f"{WHEEL_PREFIX}{version}"
    packed |= {f"{stem}.dist-info/{name}": content for name, content in metadata.items()}
    packed[f"{stem}.dist-info/METADATA"] = _with_version(metadata["METADATA"], version)
    packed[f"{stem}.dist-info/RECORD"] = _record(packed, f"{stem}.dist-info/RECORD")
    path = folder / f"{stem}-py3-none-any.whl"
    _write(path, _zip(packed))
    return path


def _packages() -> dict[str, bytes]:
    """Return the files of the three packages, and of SkyPilot's tasks, by their place in a wheel.

    By their place on disk, for a folder named `train` in front of ours on the path is not ours.
    """
    root = Path(orchestrator.__file__).parents[1]
    files = {
        file.relative_to(root).as_posix(): file
        for package in _PACKAGES
        for file in _files_below(root / package)
    }
    if not (root / _TASKS / "__init__.py").exists():  # or it is SkyPilot itself, beside ours
        beside = [*sorted((root / _TASKS).glob("*.yaml")), root / _CONSTRAINTS]
        files |= {f"{_TASKS_PACKED}/{file.name}": file for file in beside if file.exists()}
    return {name: file.read_bytes() for name, file in files.items()}


def _files_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__" or path.suffix == ".pyc":
            continue
        if path.is_dir():
            yield from _files_below(path)
        else:
            yield path


def _metadata() -> dict[str, bytes]:
    """Return what the installed metadata says, by its place in a dist-info folder."""
    try:
        installed = distribution(DISTRIBUTION)
    except PackageNotFoundError as error:
        raise MissingDependency(
            "This program runs from a folder and is not installed, so no wheel of it can be made.",
            "Install it, as with pip install -e in its checkout.",
        ) from error
    texts = {name: installed.read_text(name) for name in ("METADATA", "entry_points.txt")}
    found = {name: text.encode() for name, text in texts.items() if text is not None}
    found["METADATA"] = _with_version(found["METADATA"], orchestrator.__version__)
    return found | dict(_licenses(installed)) | {"WHEEL": _WHEEL.encode()}


def _licenses(installed: Distribution) -> Iterator[tuple[str, bytes]]:
    for file in installed.files or ():
        if len(file.parts) > 2 and file.parts[0].endswith(".dist-info"):
            name = "/".join(file.parts[1:])
            yield name, Path(str(file.locate())).read_bytes()


def _with_version(metadata: bytes, version: str) -> bytes:
    return re.sub(rb"(?m)^Version: .*$", f"Version: {version}".encode(), metadata, count=1)


def with_extras(metadata: bytes, extras: Collection[str]) -> bytes:
    """Return a wheel's METADATA in which what only these extras require is always required."""
    for extra in extras:
        marker = rb"(?m)^(Requires-Dist: [^;\n]+?) *; *extra *== *['\"]%s['\"] *$"
        metadata = re.sub(marker % re.escape(extra.encode()), rb"\1", metadata)
    return metadata


def _digest(content: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(content):
        digest.update(f"{name}\0{len(content[name])}\0".encode())
        digest.update(content[name])
    return digest.hexdigest()[:12]


def _record(packed: Mapping[str, bytes], own_name: str) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name in sorted(packed):
        digest = base64.urlsafe_b64encode(hashlib.sha256(packed[name]).digest()).rstrip(b"=")
        rows.writerow((name, f"sha256={digest.decode()}", len(packed[name])))
    rows.writerow((own_name, "", ""))
    return text.getvalue().encode()


def _zip(packed: Mapping[str, bytes]) -> bytes:
    """Store without compression: compressed bytes differ from one zlib to the next."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as wheel:
        for name in sorted(packed, key=lambda name: (".dist-info/" in name, name)):
            entry = zipfile.ZipInfo(name, _EARLIEST)
            entry.external_attr = 0o644 << 16
            wheel.writestr(entry, packed[name])
    return archive.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Write in one step: SkyPilot uploads whatever wheel it finds in the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".wheel-", delete=False) as file:
        file.write(content)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
