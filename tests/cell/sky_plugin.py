"""The cell's plugin of SkyPilot: real AWS and GCP clouds whose machines are the cell's.

AWS' code runs unchanged, against fake_aws.py. Google's client library knows no variable for its
address, so what would leave the machine is replaced, function by function.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sky.server import plugins

import __main__

_RECOVERY_WAIT_S = 1
_STARTED_GAP_S = 1


class CellPlugin(plugins.BasePlugin):
    """Installed in the server, its executors and the controllers; twice in some of them."""

    def __init__(self, poll_seconds: float = 5, retry_gap_seconds: float = 5) -> None:
        self._poll_s = poll_seconds
        self._retry_gap_s = retry_gap_seconds

    @property
    def name(self) -> str:
        return "cell"

    def install(self, extension_context: Any) -> None:
        """Replace what reaches out, and shorten what waits."""
        from sky import provision

        from tests.cell.sky_provisioner import CellProvisioner

        for cloud in ("aws", "gcp"):
            provision.register_provisioner(cloud, CellProvisioner(cloud))
        _stay_inside()
        _compute_only()
        _without_google()
        self._wait_less()

    def _wait_less(self) -> None:
        from sky.jobs import managed_job_refresh_thread, recovery_strategy
        from sky.jobs import utils as job_utils

        job_utils.JOB_STATUS_CHECK_GAP_SECONDS = self._poll_s
        job_utils.JOB_STARTED_STATUS_CHECK_GAP_SECONDS = _STARTED_GAP_S
        # It takes a cluster for lost when its job has not started after so many looks: 50 s in all.
        recovery_strategy.MAX_JOB_CHECKING_RETRY = round(50 / _STARTED_GAP_S)
        recovery_strategy.StrategyExecutor.RETRY_INIT_GAP_SECONDS = self._retry_gap_s
        # 15 s in which an older server might still be ending: here it was killed.
        managed_job_refresh_thread._RECOVERY_WAIT_AFTER_ACQUIRE_SECONDS = _RECOVERY_WAIT_S
        if hasattr(__main__, "ControllerManager"):
            __main__.asyncio = _Hurried()


class _Hurried:
    """asyncio for the controller's module, whose loops look for new and cancelled jobs too rarely.

    10 s and 15 s are written into `monitor_loop` and `cancel_job`; a job waits for half of it.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(1 if seconds in (10, 15) else seconds)


async def _online() -> None:
    return None


def _stay_inside() -> None:
    """Skip the question to 8.8.8.8 and 1.1.1.1 that comes before each look at a cluster."""
    from sky.backends import backend_utils

    backend_utils.async_check_network_connection = _online
    backend_utils.check_network_connection = lambda: None


def _compute_only() -> None:
    """Have SkyPilot create no buckets: the one of the cell is the project's."""
    from sky import clouds

    refused = classmethod(lambda cls: (False, "the cell's bucket is not SkyPilot's"))
    clouds.AWS._check_storage_credentials = refused
    clouds.GCP._check_storage_credentials = refused


def _without_google() -> None:
    from sky import authentication, clouds

    authentication.setup_gcp_authentication = authentication.configure_ssh_info
    clouds.GCP._check_compute_credentials = classmethod(lambda cls: (True, None))
    identity = ["cell@cell-project.iam.gserviceaccount.com", "cell-project"]
    clouds.GCP.get_user_identities = classmethod(lambda cls: [identity])
    clouds.GCP.get_project_id = classmethod(lambda cls, dryrun=False: "cell-project")
