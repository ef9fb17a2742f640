"""Find flash-attn's prebuilt wheel: `python -m orchestrator.cloud.skypilot.attention`.

Prints the URL of the wheel that its project has released for this Python, torch and CUDA, for the
set-up to install with --no-deps; prints nothing, and says so, where there is none. It is never
built here: that takes the better part of an hour of a billed node. Without it, attention is sdpa's.
"""

from __future__ import annotations

import platform
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from urllib.parse import quote

_RELEASES = "https://github.com/Dao-AILab/flash-attention/releases/download"
# Newest first. Not every release has a wheel for every torch; 2.8.1 has some that 2.8.3 lacks.
_VERSIONS = ("2.8.3", "2.8.2", "2.8.1")
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What a compiled extension has to fit."""

    python: tuple[int, int]
    torch: str
    cuda: str | None
    has_cxx11_abi: bool
    system: str
    machine: str


def wheel_urls(build: Build) -> Iterator[str]:
    """Yield where a fitting wheel would be, by the names of the project's own setup.py.

    Of torch's version and CUDA's only the beginning counts: flash_attn-2.8.3+cu12torch2.8
    cxx11abiTRUE-cp311-cp311-linux_x86_64.whl.
    """
    if build.cuda is None or build.system != "Linux":
        return
    torch = ".".join(build.torch.partition("+")[0].split(".")[:2])
    cuda = build.cuda.partition(".")[0]
    abi = "TRUE" if build.has_cxx11_abi else "FALSE"
    python = f"cp{build.python[0]}{build.python[1]}"
    for version in _VERSIONS:
        name = (
            f"flash_attn-{version}+cu{cuda}torch{torch}cxx11abi{abi}"
            f"-{python}-{python}-linux_{build.machine}.whl"
        )
        yield f"{_RELEASES}/v{version}/{quote(name)}"


def find_wheel(build: Build, exists: Callable[[str], bool]) -> str | None:
    """Return the newest wheel that is there."""
    return next((url for url in wheel_urls(build) if exists(url)), None)


def is_there(url: str) -> bool:
    """Ask the server without downloading; a server that does not answer has nothing for us."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
            return bool(reply.status == 200)  # HTTP's OK
    except (urllib.error.URLError, OSError):
        return False


def this_build() -> Build | None:
    """Return what is installed here, None without torch."""
    if find_spec("torch") is None:
        return None
    # By name: nothing else here imports torch, and this module is a program of its own.
    torch = import_module("torch")
    return Build(
        python=(sys.version_info.major, sys.version_info.minor),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        has_cxx11_abi=bool(torch.compiled_with_cxx11_abi()),
        system=platform.system(),
        machine=platform.machine(),
    )


def main() -> None:
    """Print the wheel's URL, or say on stderr that there is none."""
    build = this_build()
    if find_spec("flash_attn") is not None:
        sys.stderr.write("flash-attn is installed already\n")
        return
    url = None if build is None else find_wheel(build, is_there)
    if url is None:
        sys.stderr.write(f"no prebuilt flash-attn for {build}: attention will be sdpa's\n")
    else:
        sys.stdout.write(f"{url}\n")


if __name__ == "__main__":
    main()
