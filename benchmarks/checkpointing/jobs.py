"""What the checkpoint benchmark asks of a rank process, and what the two say to each other.

Torch-free: the driver measures the ranks from outside and needs none of what they import.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict

# Measured values by name; seconds, megabytes or gigabytes, as the end of the name says.
Figures: TypeAlias = dict[str, float]

WORLD_SIZE = 2
# A forward and backward pass: those of a 7B model on 8 A100 take some seconds.
PASS_S = 1.5


class Variant(str, Enum):
    """A way to save, or (raw) the transfer alone."""

    OURS = "ours"
    TORCH_SAVE = "torch_save"
    DCP_S3FS = "dcp_s3fs"
    S3TORCHCONNECTOR = "s3torchconnector"
    ASYNC_THREAD = "async_thread"
    ASYNC_PROCESS = "async_process"
    RAW = "raw"


# Variants that save while training goes on.
ASYNC_VARIANTS = (Variant.OURS, Variant.ASYNC_THREAD, Variant.ASYNC_PROCESS)
# The package of the `bench` extra that a variant is about.
PACKAGES = {
    Variant.DCP_S3FS: "s3fs",
    Variant.S3TORCHCONNECTOR: "s3torchconnector",
    Variant.ASYNC_THREAD: "s3torchconnector",
    Variant.ASYNC_PROCESS: "s3torchconnector",
}


# What the probe's figures are called: one of these and the name of a client.
UPLOAD, DOWNLOAD = "upload by ", "download by "


class Act(str, Enum):
    """What a rank process is for."""

    SAVE = "save"
    STEPS = "steps"
    LOAD = "load"
    PROBE = "probe"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Job(_Message):
    """A task of all ranks; the last three fields are filled in for each, as its only argument."""

    act: Act
    variant: Variant
    bucket: str = ""
    state_bytes: int
    upload_client: str = ""
    download_client: str = ""
    rank: int = 0
    world_size: int = 1
    meeting_file: str = ""

    @property
    def url(self) -> str:
        """Return the folder that the variant may write to."""
        return f"s3://{self.bucket}/run"


class Said(_Message):
    """A rank has come to the next meeting, with what it measured since the last, or failed."""

    figures: Figures = {}
    error: str | None = None
