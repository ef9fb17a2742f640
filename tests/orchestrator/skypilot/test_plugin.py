"""The plugin in SkyPilot's own hands: it loads, and what we override is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own: SkyPilot keeps what is registered, and its state, for a whole process.
_LOAD = """
import inspect
from sky.server import plugins
plugins.load_plugins(plugins.ExtensionContext(context=plugins.PluginContext.CONTROLLER))
print("plugins:", [(plugin.name, bool(plugin.version)) for plugin in plugins.get_plugins()])

from sky.jobs import recovery_strategy, state
from sky.utils import registry
strategy = registry.JOBS_RECOVERY_STRATEGY_REGISTRY.from_str("ORCHESTRATE")
print("strategy:", strategy.__name__, strategy.tick_seconds)

base = recovery_strategy.FailoverStrategyExecutor
ours = [name for name, value in vars(strategy).items() if inspect.isfunction(value)]
seams = [name for name in ours if hasattr(base, name) and name != "__init__"]
print("seams:", sorted(seams))
for name in seams:
    assert inspect.iscoroutinefunction(getattr(strategy, name)) == inspect.iscoroutinefunction(
        getattr(base, name)
    ), name
for name in ("get_job_status_with_task_id_async", "scheduler_set_alive_async",
             "set_backoff_pending_async", "set_restarting_async"):
    assert inspect.iscoroutinefunction(getattr(state, name)), name
assert {"max_retry", "raise_on_failure", "recovery"} <= set(
    inspect.signature(base._launch).parameters
)
"""


@pytest.fixture
def sky_home(tmp_path) -> Path:
    """A home in which SkyPilot's plugins.yaml names ours, twice as fast as usual."""
    folder = tmp_path / ".sky"
    folder.mkdir()
    (folder / "plugins.yaml").write_text(
        "plugins:\n- class: orchestrator.cloud.plugin.OrchestratePlugin\n"
        "  parameters: {tick_seconds: 7}\n"
    )
    return tmp_path


def test_skypilot_loads_the_strategy_and_has_every_hook_that_it_overrides(sky_home):
    environment = {
        **os.environ,
        "HOME": str(sky_home),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, "-c", _LOAD], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "plugins: [('orchestrate', True)]" in done.stdout
    assert "strategy: OrchestrateStrategy 7" in done.stdout
    seams = (
        "['_await_launch_request', '_cleanup_cluster', 'launch', 'monitor_task', 'on_resume', "
        "'recover', 'should_restart_on_failure']"
    )
    assert f"seams: {seams}" in done.stdout
