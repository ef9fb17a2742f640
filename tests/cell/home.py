"""The HOME of SkyPilot inside the cell: its configuration, credentials, plugins and catalogs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from tests.cell.bucket import remove_sockets
from tests.cell.catalogs import write_catalogs
from tests.cell.places import ACCESS_KEY, SECRET_KEY, Places

CELL_PLUGIN = "tests.cell.sky_plugin.CellPlugin"


def furnish(places: Places, image: Path, plugins: Sequence[str], poll_seconds: float) -> None:
    """Write all that SkyPilot reads before it starts; prices that were changed are kept."""
    places.make()
    sky = places.home / ".sky"
    _link(places.image, image)
    _write_aws(places.home / ".aws")
    consolidated = {"controller": {"consolidation_mode": True}}
    config = {"jobs": consolidated, "serve": consolidated}
    (sky / "config.yaml").write_text(yaml.safe_dump(config))
    (sky / "user_hash").write_text(_user(places))
    write_plugins(places, plugins, poll_seconds)
    if not (sky / "catalogs").exists():
        write_catalogs(places.home)
    _copy_wheel(image / "wheels", sky / "wheels")
    if not places.host_key.exists():
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(places.host_key)]
        subprocess.run(command, check=True)


def write_plugins(places: Places, plugins: Sequence[str], poll_seconds: float) -> bool:
    """Write SkyPilot's list of plugins, the cell's own first, and say whether it is another one."""
    own = {"class": CELL_PLUGIN, "parameters": {"poll_seconds": poll_seconds}}
    text = yaml.safe_dump({"plugins": [own, *({"class": name} for name in plugins)]})
    path = places.home / ".sky" / "plugins.yaml"
    is_new = not path.exists() or path.read_text() != text
    path.write_text(text)
    return is_new


def clear(places: Places) -> None:
    """Remove what an ended cell has left in the machine's /tmp."""
    shutil.rmtree(f"/tmp/sky_ssh_{_user(places)}", ignore_errors=True)
    remove_sockets(places)


def _user(places: Places) -> str:
    """Return SkyPilot's name for its user.

    It is in the path of its SSH connections' sockets, which are in /tmp: no two cells may share it.
    """
    return hashlib.md5(str(places.base).encode(), usedforsecurity=False).hexdigest()[:8]


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _write_aws(folder: Path) -> None:
    keys = f"aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    (folder / "credentials").write_text(f"[default]\n{keys}")
    (folder / "config").write_text("[default]\nregion = us-east-1\n")


def _copy_wheel(built: Path, wanted: Path) -> None:
    """Have the wheel be newer than SkyPilot's code, or its server would build another."""
    shutil.rmtree(wanted, ignore_errors=True)
    shutil.copytree(built, wanted)
    now = time.time()
    for path in [wanted, *wanted.rglob("*")]:
        os.utime(path, (now, now))
