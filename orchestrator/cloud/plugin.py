"""The SkyPilot plugin: makes our recovery strategy known to its API server and jobs controllers.

~/.sky/plugins.yaml names this class; `orchestrate doctor --fix` writes it there.
"""

from __future__ import annotations

from sky.server import plugins

from orchestrator import __version__
from orchestrator.cloud.skypilot.environment import STRATEGY
from orchestrator.errors import UsageError


class OrchestratePlugin(plugins.BasePlugin):  # type: ignore[misc]  # SkyPilot ships no types
    """Registers the strategy `orchestrate`."""

    def __init__(self, tick_seconds: float = 15.0) -> None:
        """`tick_seconds`: how often a running job's run folder is looked at."""
        if tick_seconds <= 0:
            raise UsageError(
                f"tick_seconds: {tick_seconds} is not positive.", "Correct it in plugins.yaml."
            )
        self._tick_seconds = tick_seconds

    @property
    def name(self) -> str:
        """Name under which the API server lists the plugin."""
        return STRATEGY

    @property
    def version(self) -> str:
        """Version of this project on the API server."""
        return __version__

    def install(self, extension_context: plugins.ExtensionContext) -> None:
        """Register the strategy in this process."""
        # SkyPilot's own jobs modules, which only its processes have loaded already.
        from orchestrator.cloud.skypilot.strategy import register

        register(self._tick_seconds)
