"""The least that a run needs of its buckets, as policies to paste; and what reads bills."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from orchestrator.billing.tags import RUN_TAG

# What the stores call: get, put (also conditional and in parts), delete, list, and abort.
_OBJECT_ACTIONS = (
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
)
_LIST, _LIST_UPLOADS = "s3:ListBucket", "s3:ListBucketMultipartUploads"
# AWS knows no narrower resource: who may ask sees the whole account's bill.
_READ_BILLS = "ce:GetCostAndUsage"
# What SkyPilot's autodown calls on a node of AWS, as the node's role: it finds the cluster's nodes,
# gives them the default security group, and terminates them (sky/provision/aws/instance.py).
_FIND_NODES = ("ec2:DescribeInstances", "ec2:DescribeVpcs", "ec2:DescribeSecurityGroups")
_CHANGE_GROUPS, _TERMINATE = "ec2:ModifyInstanceAttribute", "ec2:TerminateInstances"
_OTHER_CLOUDS = {
    "gs": "grant roles/storage.objectUser on bucket {bucket} to the run's service account",
    "az": "grant Storage Blob Data Contributor on container {bucket} to the run's identity",
}


def aws_policy(urls: Iterable[str], *, ends_nodes: bool = False) -> dict[str, Any] | None:
    """Return an AWS IAM policy for the stores in S3 among `urls`, None if it would be empty.

    `ends_nodes` adds what the role of nodes needs, so that SkyPilot's autodown works on them.
    """
    statements: list[dict[str, Any]] = []
    for url in sorted({url for url in urls if urlsplit(url).scheme == "s3"}):
        parts = urlsplit(url)
        prefix = parts.path.strip("/")
        below = f"{prefix}/*" if prefix else "*"
        bucket = f"arn:aws:s3:::{parts.netloc}"
        listing: dict[str, Any] = {"Effect": "Allow", "Action": [_LIST], "Resource": bucket}
        if prefix:
            listing["Condition"] = {"StringLike": {"s3:prefix": [below]}}
        statements += [
            {
                "Effect": "Allow",
                "Action": list(_OBJECT_ACTIONS),
                "Resource": f"{bucket}/{below}",
            },
            listing,
            # AWS knows no prefix of a listing of uploads: a condition on it would never be met.
            {"Effect": "Allow", "Action": [_LIST_UPLOADS], "Resource": bucket},
        ]
    if ends_nodes:
        statements += _autodown_statements()
    return {"Version": "2012-10-17", "Statement": statements} if statements else None


def bill_grant(clouds: Iterable[str] | None) -> str | None:
    """Return what whoever compares bills may be granted besides, None where AWS is not used."""
    if "aws" not in (clouds or ()):
        return None
    return (
        "optional, for whoever runs orchestrate cost RUN --reconcile aws and not for nodes: allow "
        f"{_READ_BILLS} on resource *"
    )


def role_grant(clouds: Iterable[str] | None) -> str | None:
    """Return what a role of the nodes needs besides, None where AWS is not used."""
    if "aws" not in (clouds or ()):
        return None
    return (
        "if nodes on AWS have a role of their own (aws.remote_identity), it must also let them end "
        "themselves when nobody is left to do it: orchestrate doctor SPEC --iam --role"
    )


def other_grants(urls: Iterable[str]) -> list[str]:
    """Return what to grant for the stores in other clouds, a sentence each."""
    parts = [urlsplit(url) for url in sorted(set(urls))]
    return [
        _OTHER_CLOUDS[part.scheme].format(bucket=part.netloc)
        for part in parts
        if part.scheme in _OTHER_CLOUDS
    ]


def _autodown_statements() -> list[dict[str, Any]]:
    return [
        # AWS knows no narrower resource for these.
        {"Effect": "Allow", "Action": list(_FIND_NODES), "Resource": "*"},
        {
            "Effect": "Allow",
            "Action": [_TERMINATE, _CHANGE_GROUPS],
            "Resource": "arn:aws:ec2:*:*:instance/*",
            "Condition": {"StringLike": {f"aws:ResourceTag/{RUN_TAG}": "*"}},
        },
        {
            "Effect": "Allow",
            "Action": [_CHANGE_GROUPS],
            "Resource": "arn:aws:ec2:*:*:security-group/*",
        },
    ]
