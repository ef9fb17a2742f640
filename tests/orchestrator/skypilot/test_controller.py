"""What a remote jobs controller makes of what `doctor --fix` wrote: our strategy loads there.

No controller is launched: its files are put and its script is run, as SkyPilot generates them, in a
home of their own with the Python that controllers have.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.orchestrator.test_wheel import python_310

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_BINARIES = Path(sys.executable).parent
# SkyPilot's own template, filled in with what SkyPilot fills in.
_RENDER = """
import pathlib, sys, jinja2, sky
from sky.utils import controller_utils
filled = controller_utils.controller_only_vars_to_fill(
    controller_utils.Controllers.JOBS_CONTROLLER)
template = pathlib.Path(sky.__file__).parent / "templates" / "jobs-controller.yaml.j2"
pathlib.Path(sys.argv[1]).write_text(jinja2.Template(template.read_text()).render(
    **filled, is_consolidation_mode=False, modified_catalogs={},
    local_to_controller_file_mounts={}, local_user_config_path=None, job_ids=[1], dag_name="demo",
    pool=None, priority_class=None, priority=500, remote_env_file_path="~/env",
    remote_user_yaml_path="~/user.yaml", user_yaml_path="user.yaml",
    remote_original_user_yaml_path="~/original.yaml", original_user_dag_path="original.yaml"))
"""
# As sky/jobs/controller.py does.
_LOAD = """
import sys
from sky.server import plugins
plugins.load_plugins(plugins.ExtensionContext(context=plugins.PluginContext.CONTROLLER))
from sky.jobs import recovery_strategy
from sky.utils import registry
found = registry.JOBS_RECOVERY_STRATEGY_REGISTRY.from_str("orchestrate")
print([p.name for p in plugins.get_plugins()], found.__module__, sys.version_info[:2])
"""


def run(*command: object, home: Path, **variables: str) -> str:
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "PYTHONWARNINGS": "ignore",
        **variables,
    }
    words = [str(word) for word in command]
    done = subprocess.run(
        words, env=environment, cwd=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> dict[str, object]:
    """The task that SkyPilot would launch, on a laptop whose plugin files doctor has written."""
    laptop, root = tmp_path_factory.mktemp("laptop"), str(Path(__file__).parents[3])
    fix = "from orchestrator.cli import main; main()"
    run(sys.executable, "-c", fix, "doctor", "--fix", "--yes", home=laptop, PYTHONPATH=root)
    run(sys.executable, "-c", _RENDER, laptop / "task.yaml", home=laptop, PYTHONPATH=root)
    found = yaml.safe_load((laptop / "task.yaml").read_text())
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def controller(tmp_path_factory) -> Path:
    """The home of a controller with SkyPilot in it; packages come from uv's cache, or from PyPI."""
    home = tmp_path_factory.mktemp("controller")
    binaries = home / ".local" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "uv").symlink_to(_BINARIES / "uv")
    uv, environment = binaries / "uv", home / "skypilot-runtime"
    run(uv, "venv", "--quiet", "--seed", "-p", python_310(), environment, home=home, **_cache())
    install = (uv, "pip", "install", "--quiet", "-p", environment / "bin" / "python")
    run(*install, "skypilot[aws,remote]==0.14.1", home=home, **_cache())
    return home


def _cache() -> dict[str, str]:
    chosen = os.environ.get("UV_CACHE_DIR") or str(Path("~/.cache/uv").expanduser())
    network = ("UV_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    kept = {name: value for name, value in os.environ.items() if name.startswith(network)}
    return {**kept, "UV_CACHE_DIR": chosen}


def test_the_generated_script_yields_a_loadable_strategy(rendered, controller):
    for remote, local in rendered["file_mounts"].items():
        if remote.startswith("~/.sky/plugins"):
            target = controller / remote.removeprefix("~/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(local, target)
    script, _, _ = rendered["run"].partition("# Write env vars to a file")
    assert "Installing plugin wheel spot_orchestrator-" in script
    first = run("bash", "-ec", script, home=controller, **_cache())
    assert "Installing plugin wheel" in first
    assert "already installed" in run("bash", "-ec", script, home=controller, **_cache())

    python = controller / "skypilot-runtime" / "bin" / "python"
    loaded = run(python, "-c", _LOAD, home=controller).splitlines()[-1]
    assert loaded == "['orchestrate'] orchestrator.cloud.skypilot.strategy (3, 10)"
    # An extra elsewhere; a controller's wheel requires what the strategy sends notifications by.
    opened = "from orchestrator.notify.messenger import open_addresses; open_addresses('json://h')"
    run(python, "-c", opened, home=controller)
    # Installing ours has moved none of SkyPilot's own pins.
    run(controller / ".local" / "bin" / "uv", "pip", "check", "-p", python, home=controller)
