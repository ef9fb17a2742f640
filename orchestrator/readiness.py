"""What this machine has and lacks for clouds, from its files and variables alone: nothing is asked.

A cloud without credentials here is not a mistake: the API server may have them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from orchestrator.catalog import catalog_folder

# Where each cloud's own tools and SkyPilot look: variables, then files below the home folder.
_VARIABLES = {
    "aws": ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    "gcp": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "azure": ("AZURE_CLIENT_ID",),
    "lambda": (),
    "runpod": ("RUNPOD_API_KEY",),
}
_FILES = {
    "aws": (".aws/credentials", ".aws/config"),
    "gcp": (".config/gcloud/application_default_credentials.json",),
    "azure": (".azure/msal_token_cache.json",),
    "lambda": (".lambda_cloud/lambda_keys",),
    "runpod": (".runpod/config.toml",),
}
_MOVED_FILES = {"aws": ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE")}
HOW_TO_SIGN_IN = {
    "aws": "aws configure",
    "gcp": "gcloud auth application-default login",
    "azure": "az login",
    "lambda": "write api_key = ... to ~/.lambda_cloud/lambda_keys",
    "runpod": "runpod config",
}


def has_credentials(cloud: str) -> bool:
    """Say whether this machine seems signed in to a cloud; the credentials are not tried."""
    if any(os.environ.get(name) for name in _VARIABLES[cloud]):
        return True
    moved = [os.environ.get(name) for name in _MOVED_FILES.get(cloud, ())]
    files = [Path.home() / name for name in _FILES[cloud]]
    return any(file.is_file() for file in [*files, *(Path(name) for name in moved if name)])


def skypilot_version() -> str | None:
    """Return the installed version of SkyPilot, None without it."""
    try:
        return version("skypilot")
    except PackageNotFoundError:
        return None


def what_is_missing(clouds: Iterable[str]) -> list[str]:
    """Return what a plan for these clouds has to do without, a sentence each."""
    missing = []
    if skypilot_version() is None:
        missing.append(
            "SkyPilot is not installed, so nothing can be launched: "
            "pip install 'spot-orchestrator[sky]'"
        )
    unfetched = [one for one in clouds if not (catalog_folder() / one / "vms.csv").is_file()]
    if unfetched:
        missing.append(
            f"SkyPilot's catalog of {', '.join(unfetched)} is not on this machine, so shipped "
            "prices stand in where there are any: sky check fetches it"
        )
    for cloud in clouds:
        if not has_credentials(cloud):
            missing.append(
                f"No credentials for {cloud} here, so its quota and live prices are unknown: "
                f"{HOW_TO_SIGN_IN[cloud]}"
            )
    return missing
