"""Which obstore client a bucket gets: timeouts, retries, and each cloud's usual credentials."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store

from checkpoints.addresses import split_address
from checkpoints.errors import StoreRefused

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from obstore.store import ClientConfig, RetryConfig

Client: TypeAlias = MemoryStore | S3Store | GCSStore | AzureStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What to do about a cloud that was found without credentials, said no, or said nothing."""

    credentials: str
    access: str
    network: str


HINTS = {
    "s3": Hints(
        credentials="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
        access="Check the credentials (aws sts get-caller-identity) and the bucket's policy.",
        network="Check the network, AWS_ENDPOINT_URL and AWS_REGION; then run it again.",
    ),
    "s3-local": Hints(
        credentials="",
        access="Its data is another installation's: check ORCHESTRATE_HOME.",
        network="Run orchestrate status on this machine, which starts the server again.",
    ),
    "gs": Hints(
        credentials="Run gcloud auth application-default login, or set "
        "GOOGLE_APPLICATION_CREDENTIALS.",
        access="Check the credentials (gcloud auth list) and the bucket's permissions.",
        network="Check the network; then run it again.",
    ),
    "az": Hints(
        credentials="Set AZURE_STORAGE_ACCOUNT_KEY; or AZURE_USE_AZURE_CLI=true after az login.",
        access="Check the credentials (az account show) and the container's roles.",
        network="Check the network and AZURE_STORAGE_ACCOUNT_NAME; then run it again.",
    ),
    "memory": Hints(credentials="", access="", network="Run it again."),
}

# One request must move a part over a slow link; a dead peer is noticed by the connect timeout.
_CLIENT: ClientConfig = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=60)}
# Retries with jittered exponential backoff, on connection errors and 5xx; credentials outlive it.
_RETRY: RetryConfig = {
    "max_retries": 6,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5)},
    "retry_timeout": timedelta(seconds=60),
}
# Names the file that tells where the server of this machine is, and its key.
LOCAL_SERVER = "S3_LOCAL_SERVER"
_DEFAULT_REGION = "us-east-1"
# obstore asks again for credentials that have less than 5 minutes left, at most each 100 ms.
_CREDENTIALS_LAST = timedelta(minutes=5)

_memory_stores: dict[str, MemoryStore] = {}
_memory_lock = threading.Lock()


def open_client(scheme: str, bucket: str) -> Client:
    """Return the client for a scheme that `store.open_store` knows.

    Raises:
        AddressInvalid: the endpoint that is set for it is no address.
        StoreRefused: other settings of it cannot be used.
    """
    if scheme == "memory":
        with _memory_lock:
            return _memory_stores.setdefault(bucket, MemoryStore())
    _check_settings()
    open_one: dict[str, Callable[[str], Client]]
    open_one = {"s3": _open_s3, "s3-local": _open_local_s3, "gs": _open_gcs, "az": _open_azure}
    try:
        return open_one[scheme](bucket)
    except BaseError as error:
        raise StoreRefused(
            f"{scheme}://{bucket} cannot be opened: {str(error).splitlines()[0]}",
            HINTS[scheme].credentials,
        ) from error


def _check_settings() -> None:
    """Name a setting that would be no header: obstore reads all of these, and panics at it."""
    for name, value in os.environ.items():
        if name.startswith(("AWS_", "AZURE_")) and not value.isprintable():
            raise StoreRefused(
                f"{name} has a line's end or an unprintable character", "Set it anew."
            )


def _open_s3(bucket: str) -> S3Store:
    """Find endpoint, region and credentials as AWS' tools do: in the environment, in a profile."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    endpoint = next(filter(None, map(os.environ.get, names)), None)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not (endpoint and region) and _has_profile():
        profile = _read_settings()
        endpoint = endpoint or profile.get("endpoint_url")
        region = region or profile.get("region")
    for name in ("AWS_ENDPOINT", *names):
        # obstore reads them as well; an empty one, too, where it is given none.
        if os.environ.get(name) or (name in os.environ and not endpoint):
            split_address(os.environ[name], name)
    provide = _profile_credentials() if _needs_profile() else None
    return _s3_store(bucket, endpoint, region or _DEFAULT_REGION, provide)


def _open_local_s3(bucket: str) -> S3Store:
    """Find endpoint and key in this machine's file; the environment may be another server's."""
    try:
        server = json.loads(Path(os.environ[LOCAL_SERVER]).read_bytes())
        key = {"access_key_id": server["access_key"], "secret_access_key": server["secret_key"]}
        endpoint = server["endpoint"]
    except (KeyError, OSError, ValueError) as error:
        raise StoreRefused(
            f"s3-local://{bucket} is on the machine that launched the run: {LOCAL_SERVER} names "
            "no server here",
            "Use orchestrate on that machine.",
        ) from error
    return _s3_store(
        bucket, endpoint, _DEFAULT_REGION, lambda: {**key, "token": None, "expires_at": None}
    )


def _s3_store(
    bucket: str, endpoint: str | None, region: str, provide: Callable[[], dict[str, Any]] | None
) -> S3Store:
    options: dict[str, Any] = {}
    if endpoint:
        # The second name wins over the first, also where it comes from the environment.
        options = {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint}
    if provide is not None:
        options["credential_provider"] = provide
    return S3Store(
        bucket,
        region=region,
        # Hashing the body halved the upload rate. The server checks this of each part instead.
        unsigned_payload=True,
        checksum_algorithm="CRC64NVME",
        client_options=_options(endpoint, "AWS_ENDPOINT_URL"),
        retry_config=_RETRY,
        **options,
    )


def _open_gcs(bucket: str) -> GCSStore:
    options = _options(os.environ.get("GOOGLE_BASE_URL"), "GOOGLE_BASE_URL")
    return GCSStore(bucket, client_options=options, retry_config=_RETRY)


def _open_azure(container: str) -> AzureStore:
    if "AZURE_STORAGE_ACCOUNT_NAME" not in os.environ:
        raise StoreRefused(
            f"az://{container} names no storage account", "Set AZURE_STORAGE_ACCOUNT_NAME."
        )
    endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT") or os.environ.get("AZURE_ENDPOINT")
    options = _options(endpoint, "AZURE_STORAGE_ENDPOINT")
    return AzureStore(container, client_options=options, retry_config=_RETRY)


def _options(endpoint: str | None, called: str) -> ClientConfig:
    is_plain = endpoint is not None and split_address(endpoint, called).scheme == "http"
    return {**_CLIENT, "allow_http": is_plain}


def _needs_profile() -> bool:
    """Return whether credentials come from a profile, which obstore cannot read by itself."""
    return "AWS_ACCESS_KEY_ID" not in os.environ and _has_profile()


def _has_profile() -> bool:
    return bool(os.environ.get("AWS_PROFILE")) or any(file.exists() for file in _profile_files())


def _profile_files() -> list[Path]:
    places = {
        "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
        "AWS_CONFIG_FILE": "~/.aws/config",
    }
    try:
        return [Path(os.environ.get(name) or usual).expanduser() for name, usual in places.items()]
    except RuntimeError as error:
        raise StoreRefused(
            f"{' or '.join(places)} is below a home folder of nobody", "Correct it."
        ) from error


def _read_settings() -> dict[str, Any]:
    """Return what the profile says beside its credentials."""
    from botocore.exceptions import BotoCoreError  # 0.2 s, needed only here
    from botocore.session import Session

    try:
        return Session().get_scoped_config()
    except BotoCoreError as error:
        raise StoreRefused(
            f"The AWS profile cannot be used: {error}", "Correct it, or set AWS_PROFILE."
        ) from error


def _profile_credentials() -> Callable[[], dict[str, Any]]:
    """Return a provider that asks boto3; obstore's own needs Python 3.11, and reads files once."""
    found: Credentials | None = None
    read_at: list[int] | None = None

    def provide() -> dict[str, Any]:
        nonlocal found, read_at
        written_at = [file.stat().st_mtime_ns for file in _profile_files() if file.exists()]
        if found is None or written_at != read_at:
            found, read_at = _read_profile(), written_at
        now = found.get_frozen_credentials()  # renews those that expire
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(timezone.utc) + _CREDENTIALS_LAST,
        }

    return provide


def _read_profile() -> Credentials:
    import boto3  # 0.3 s, needed only here

    session = boto3.Session()
    found = session.get_credentials()
    if found is None:
        raise StoreRefused(
            f"AWS profile {session.profile_name!r} has no credentials",
            "Run: aws configure, or set AWS_PROFILE.",
        )
    return found
