"""An S3 server on loopback that enforces AWS policy documents: SeaweedFS with its own IAM."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from orchestrator.cloud.local.s3_server import ServerRecord, read_server, start_server

_REGION = "us-east-1"


class IamServer:
    """The server, and who may do what there; `owner` may do everything."""

    def __init__(self, record: ServerRecord) -> None:
        self._record = record
        self._numbers = itertools.count()
        self._iam = self._client("iam", record.access_key, record.secret_key)
        self.owner = self._client("s3", record.access_key, record.secret_key)

    def add_user(self, policy: Mapping[str, Any] | None) -> dict[str, str]:
        """Return the variables by which programs are a new user, who has this policy alone."""
        name = f"user-{next(self._numbers)}"
        self._iam.create_user(UserName=name)
        key = self._iam.create_access_key(UserName=name)["AccessKey"]
        if policy is not None:
            document = json.dumps(policy)
            made = self._iam.create_policy(PolicyName=name, PolicyDocument=document)["Policy"]
            self._iam.attach_user_policy(UserName=name, PolicyArn=made["Arn"])
        return {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "AWS_REGION": _REGION,
            "AWS_ENDPOINT_URL": self._record.endpoint,
        }

    def s3(self, user: Mapping[str, str]) -> Any:
        """Return a client of that user."""
        return self._client("s3", user["AWS_ACCESS_KEY_ID"], user["AWS_SECRET_ACCESS_KEY"])

    def _client(self, service: str, key: str, secret: str) -> Any:
        return boto3.Session().client(
            service,
            endpoint_url=self._record.endpoint,
            region_name=_REGION,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
        )


@contextmanager
def iam_server(folder: Path) -> Iterator[IamServer]:
    """Serve until the block ends."""
    process = start_server(folder, "-s3.iam.readOnly=false")
    try:
        record = read_server(folder)
        assert record is not None
        yield IamServer(record)
    finally:
        process.kill()
        process.wait()
