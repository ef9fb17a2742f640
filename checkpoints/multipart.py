"""Multipart uploads that nobody will finish: S3 keeps and bills their parts until they are aborted.

obstore can neither list nor abort them, so this goes through boto3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from checkpoints.errors import StoreRefused, StoreUnreachable

if TYPE_CHECKING:
    from obstore.store import S3Store
    from types_boto3_s3 import S3Client

_CONNECT_S = 5
_READ_S = 60
_MAX_TRIES = 5
_REFUSALS = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")


def abort_uploads(client: S3Store, prefix: str, is_stale: Callable[[str], bool]) -> list[str]:
    """Abort the unfinished uploads of keys that start with `prefix` and are stale; return the keys.

    Keys are those of the bucket. Raises StoreRefused and StoreUnreachable.
    """
    bucket = client.config["bucket"]
    with _calling(bucket):
        s3 = _boto3_client(client)
        return [
            key
            for key, upload in _list_uploads(s3, bucket, prefix)
            if is_stale(key) and _abort(s3, bucket, key, upload)
        ]


def _boto3_client(client: S3Store) -> S3Client:
    """Return a client for the same server, with the same key where obstore was given one."""
    import boto3  # 0.3 s, needed only here
    from botocore.config import Config

    found, provide = client.config, client.credential_provider
    endpoint = found.get("endpoint")
    key: Any = provide() if provide is not None else {}
    # Of a session of its own: the default one keeps the first key that it finds.
    return boto3.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=found.get("region"),
        aws_access_key_id=key.get("access_key_id"),
        aws_secret_access_key=key.get("secret_access_key"),
        aws_session_token=key.get("token"),
        config=Config(
            connect_timeout=_CONNECT_S,
            read_timeout=_READ_S,
            retries={"total_max_attempts": _MAX_TRIES, "mode": "standard"},
            # As obstore does; names like bucket.host are for AWS.
            s3={"addressing_style": "path"} if endpoint else None,
        ),
    )


def _list_uploads(s3: S3Client, bucket: str, prefix: str) -> list[tuple[str, str]]:
    pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    # All of them first: aborting between pages would move the marker's neighbours.
    return [
        (upload["Key"], upload["UploadId"]) for page in pages for upload in page.get("Uploads", [])
    ]


def _abort(s3: S3Client, bucket: str, key: str, upload: str) -> bool:
    """Abort one upload; False when it was finished or aborted meanwhile."""
    try:
        s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
    except s3.exceptions.NoSuchUpload:
        return False
    return True


@contextmanager
def _calling(bucket: str) -> Iterator[None]:
    """Translate boto3's errors."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    what = f"s3://{bucket} did not abort unfinished uploads"
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        code = error.response["Error"].get("Code") if isinstance(error, ClientError) else None
        if code in _REFUSALS or isinstance(error, NoCredentialsError):
            raise StoreRefused(
                f"{what}: {error}",
                "Allow s3:ListBucketMultipartUploads and s3:AbortMultipartUpload.",
            ) from error
        raise StoreUnreachable(f"{what}: {error}", "It is tried again later.") from error
