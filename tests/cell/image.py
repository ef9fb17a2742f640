"""The node image: the home of a node's user, built once and kept by what it is made of."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.cell.places import NODE_HOME

log = logging.getLogger(__name__)

_SCRIPT = Path(__file__).with_name("image.sh")
# What SkyPilot 0.14's set-up commands ask for (sky/skylet/constants.py), and the AWS extra.
_REQUIREMENTS = (
    "setuptools<70",
    "click<8.2.0",
    "ray[default]==2.9.3",
    "pydantic-core==2.41.1",
)
# Ray 2.9.3 has no wheels for newer ones.
_RUNTIME_VERSIONS = ((3, 11), (3, 10))
_WHEEL_CODE = "from sky.backends import wheel_utils as w; print(w.build_sky_wheel()[1])"


class ImageError(Exception):
    """The node image cannot be built on this machine; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that an image is made of."""

    skypilot: str
    runtime_python: Path
    dev_python: Path
    dev_site: Path

    @property
    def requirements(self) -> tuple[str, ...]:
        return (*_REQUIREMENTS, f"skypilot[aws,remote]=={self.skypilot}")

    @property
    def key(self) -> str:
        parts = [str(self), *self.requirements, sys.version, str(NODE_HOME), _SCRIPT.read_text()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def recipe() -> Recipe:
    """Return the recipe for this environment.

    Raises:
        ImageError: there is no interpreter that Ray runs on.
    """
    interpreter = Path(sys.executable).resolve()
    return Recipe(
        skypilot=version("skypilot"),
        runtime_python=_runtime_python(interpreter),
        dev_python=interpreter,
        dev_site=Path(sysconfig.get_path("purelib")),
    )


def ensure_image(cache: Path) -> Path:
    """Return the image's folder below `cache`, built if need be (a minute, and the network).

    It holds `home` (the node user's) and `wheels` (what SkyPilot's server would build).
    """
    made = recipe()
    image = cache / made.key
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{made.key}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (image / "done").exists():
            shutil.rmtree(image, ignore_errors=True)
            log.info("building the node image %s", image)
            started = time.monotonic()
            _build(made, image)
            (image / "done").touch()
            log.info("built in %.0f s", time.monotonic() - started)
    return image


def _runtime_python(interpreter: Path) -> Path:
    if sys.version_info[:2] in _RUNTIME_VERSIONS:
        return interpreter
    for major, minor in _RUNTIME_VERSIONS:
        found = shutil.which(f"python{major}.{minor}", path="/usr/local/bin:/usr/bin")
        if found:
            return Path(found)
    raise ImageError("SkyPilot's nodes need Python 3.10 or 3.11: run apt-get install python3.11")


def _build(made: Recipe, image: Path) -> None:
    (image / "home").mkdir(parents=True)
    environment = {
        **os.environ,
        "IMAGE": str(image),
        "NODE_HOME": str(NODE_HOME),
        "UV": _uv(),
        "RUNTIME_PYTHON": str(made.runtime_python),
        "DEV_PYTHON": str(made.dev_python),
        "DEV_SITE": str(made.dev_site),
        "REQUIREMENTS": " ".join(made.requirements),
        "WHEEL_HASH": _build_wheel(image),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run(["unshare", "--mount", "bash", str(_SCRIPT)], env=environment, check=True)


def _build_wheel(image: Path) -> str:
    """Build the wheel of SkyPilot that its server wants to bring to nodes, and return its hash.

    Without a network: SkyPilot's code is run only where it can reach nothing.
    """
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **os.environ,
            "HOME": home,
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            # False means: do without isolation, so with the setuptools that is installed.
            "PIP_NO_BUILD_ISOLATION": "false",
        }
        done = subprocess.run(
            ["unshare", "--net", sys.executable, "-c", _WHEEL_CODE],
            env=environment,
            cwd=home,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        shutil.copytree(Path(home) / ".sky" / "wheels", image / "wheels")
    return done.stdout.split()[-1]


def _uv() -> str:
    beside = Path(sys.prefix) / "bin" / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise ImageError("the node image is built with uv: pip install uv")
    return found
