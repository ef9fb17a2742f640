"""The run spec: one YAML file that describes a run, validated in full before anything happens.

The trainer's sections are defined in `train.config`; this file adds what the orchestrator decides.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from checkpoints.store import CLOUD_SCHEMES
from orchestrator.errors import SpecError
from orchestrator.offers import MarketPreference
from orchestrator.policy.sight import PolicyName
from train.config import CheckpointOptions, DataOptions, ModelOptions, TrainOptions

SCHEMA_VERSION = 1
RUN_NAME = "[a-z0-9][a-z0-9-]{0,47}"
LOCAL_S3 = "s3-local://runs"
CLOUDS = ("aws", "gcp", "azure", "lambda", "runpod")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_LONGEST = timedelta(days=10_000_000)
# In no name or path that anybody means, and some of what they are given to stops at the first.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
# user:password@ in an address.
_PASSWORD = re.compile(r"^[a-z0-9+.-]+://[^/@]*:[^/@]*@", re.IGNORECASE)


def parse_duration(value: object) -> timedelta:
    """Read "90s", "5min", "30h" or "2d"; raises ValueError."""
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r:.80} is not a duration: write 90s, 5min, 30h or 2d")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if not 1e-3 <= seconds <= _LONGEST.total_seconds():
        raise ValueError(f"{value!r:.80} is not a duration from 1 ms to {_LONGEST.days:,} days")
    # As many digits as are written.
    return timedelta(seconds=float(f"{seconds:.16g}"))


def format_duration(duration: timedelta) -> str:
    """Write a duration so that `parse_duration` reads the same value."""
    return f"{duration.total_seconds():.16g}s"


Duration = Annotated[
    timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)
]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class NodesSpec(_Section):
    """The spec's `nodes` section."""

    count: int = Field(default=1, ge=1, le=1024)
    """Nodes per attempt."""
    accelerators: str = Field(default="A100-80GB:8", pattern=r"^[A-Za-z0-9-]+:[1-9][0-9]?$")
    """Accelerators per node, as SkyPilot names them."""

    @property
    def num_gpus(self) -> int:
        """Accelerators of one node."""
        return int(self.accelerators.partition(":")[2])


class LimitsSpec(_Section):
    """The spec's `limits` section: what the run may take."""

    budget_usd: Decimal = Field(gt=0, le=Decimal(10_000_000))
    """Most that the run may cost, in USD; there is no default."""
    deadline: Duration | None = None
    """Longest time from launch to the finished model."""
    market: MarketPreference = MarketPreference.SPOT_WITH_FALLBACK
    """Which capacity may be bought."""
    policy: PolicyName = PolicyName.AUTO
    """How to decide where and when to run, if there is a deadline."""


class WandbSpec(_Section):
    """Where in Weights & Biases the run shows."""

    project: str = Field(max_length=128, pattern=r"^[^/\\#?%:\x00-\x1f\x7f]+$")
    """W&B project; W&B takes none of / \\ # ? % : in its name."""
    entity: str | None = Field(default=None, pattern="^[A-Za-z0-9._-]{1,128}$")
    """W&B team or user; None is the key's default."""


class NewsKind(str, Enum):
    """What people can ask to be told of."""

    PREEMPTION = "preemption"  # a node was taken back or lost
    RECOVERY = "recovery"  # an attempt goes on after that
    BUDGET = "budget"  # 50, 80 and 100 % of it are used up
    DEADLINE = "deadline"  # it is at risk, or has passed
    FINISH = "finish"  # the run is done, or was stopped by its user
    FAILURE = "failure"  # an attempt failed, or the run ended before it was done


class NotifySpec(_Section):
    """Of what the run sends messages; where to is a secret, and not in the spec."""

    on: tuple[NewsKind, ...] = Field(default=tuple(NewsKind), min_length=1)
    """Kinds of messages; docs/notifications.md says what each of them tells."""

    @field_validator("on", mode="before")
    @classmethod
    def _known_kinds(cls, value: Any) -> Any:  # noqa: ANN401  # raw YAML
        known = [kind.value for kind in NewsKind]
        for name in value if isinstance(value, (list, tuple)) else ():
            if name not in known:
                raise ValueError(f"unknown kind {name!r}{suggest(str(name), known)}")
        return value


class TrackingSpec(_Section):
    """The spec's `tracking` section."""

    wandb: WandbSpec | None = None
    """Report to W&B; offline where there is no API key."""
    notify: NotifySpec | None = None
    """Send messages to the addresses in ORCHESTRATE_NOTIFY; {} tells all."""


class ScriptedPreemption(_Section):
    """One preemption of a local run, in the order given."""

    after_step: int | None = Field(default=None, ge=1)
    """Preempt once this step has been reported."""
    during: Literal["checkpoint"] | None = None
    """Preempt while a checkpoint's objects are being written."""
    notice_seconds: float = Field(default=0, ge=0, le=600)
    """Wall seconds between notice and SIGKILL; 0 gives no notice."""

    @model_validator(mode="after")
    def _has_one_trigger(self) -> ScriptedPreemption:
        if (self.after_step is None) == (self.during is None):
            raise ValueError("a preemption needs either after_step or during: checkpoint")
        return self


class LocalSpec(_Section):
    """The spec's `local` section: how `infra: local` simulates nodes and their market."""

    ranks: int = Field(default=2, ge=1, le=64)
    """Training processes per node."""
    time_scale: float = Field(default=60, gt=0, le=100_000)
    """Market seconds per wall second; deadline and dollars count market time."""
    seed: int = Field(default=0, ge=0)
    """Seed of the synthetic market."""
    preemptions: tuple[ScriptedPreemption, ...] | None = None
    """Scripted preemptions instead of the synthetic market; [] is a calm market."""


class RunSpec(_Section):
    """One run, as the user describes it."""

    name: str = Field(pattern=f"^{RUN_NAME}$")
    """Name of the run: lower-case letters, digits and dashes, 48 at most."""
    store: str = Field(min_length=1)
    """Where run folders live: s3, gs or az ://bucket/prefix, s3-local, file:///path, or a path."""
    infra: Literal["local"] | tuple[str, ...]
    """local, or the clouds that may be used."""
    nodes: NodesSpec = NodesSpec()
    """What an attempt runs on."""
    model: ModelOptions
    """The model to train."""
    data: DataOptions
    """The conversations to train on."""
    train: TrainOptions = TrainOptions()
    """The recipe."""
    checkpoints: CheckpointOptions = CheckpointOptions()
    """When to save and what to keep."""
    limits: LimitsSpec
    """What the run may take."""
    tracking: TrackingSpec = TrackingSpec()
    """Who else is told."""
    local: LocalSpec | None = None
    """How infra: local behaves."""

    @field_validator("infra", mode="before")
    @classmethod
    def _known_clouds(cls, value: Any) -> Any:  # noqa: ANN401  # raw YAML
        if value == "local":
            return value
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)) or not names:
            raise ValueError("write local, or a list of clouds")
        for name in names:
            if name not in CLOUDS:
                raise ValueError(f"unknown cloud {name!r}{suggest(str(name), CLOUDS)}")
        return tuple(names)

    @field_validator("checkpoints")
    @classmethod
    def _stores_of_known_places(cls, options: CheckpointOptions) -> CheckpointOptions:
        for place in options.stores:
            cloud, _, region = place.partition("/")
            if cloud not in CLOUDS or not region:
                raise ValueError(f"stores: {place!r} is no place: write cloud/region")
        stores = {place: resolve_store(url) for place, url in options.stores.items()}
        return options.model_copy(update={"stores": stores})

    @model_validator(mode="after")
    def _addresses_are_plain(self) -> RunSpec:
        wandb = self.tracking.wandb
        texts = {
            "store": self.store,
            "model.base": self.model.base,
            "data.train": self.data.train,
            **{
                f"checkpoints.stores.{place}": url for place, url in self.checkpoints.stores.items()
            },
            **({"tracking.wandb": f"{wandb.entity}/{wandb.project}"} if wandb else {}),
        }
        for key, text in texts.items():
            if _CONTROL.search(text):
                raise ValueError(f"{key}: {text!r:.80} has a character that no text has")
            if _PASSWORD.match(text):
                raise ValueError(
                    f"{key} has a password in its address: the spec lies in the bucket, readable"
                )
        return self

    @model_validator(mode="after")
    def _local_needs_local(self) -> RunSpec:
        if self.local is not None and not self.is_local:
            raise ValueError("the section local is only for infra: local")
        if self.is_local and self.nodes.count != 1:
            raise ValueError(f"infra: local runs one node, not nodes.count {self.nodes.count}")
        if not self.is_local and self.store.startswith("s3-local"):
            raise ValueError("store: s3-local is on this machine, and only for infra: local")
        return self

    @property
    def is_local(self) -> bool:
        """Say whether nodes are process trees on this machine."""
        return self.infra == "local"

    @property
    def clouds(self) -> tuple[str, ...] | None:
        """Clouds that may be used; None where the market is simulated over all of them."""
        return None if isinstance(self.infra, str) else self.infra

    @property
    def local_options(self) -> LocalSpec:
        """The local section, or its defaults."""
        return self.local or LocalSpec()

    @property
    def time_scale(self) -> float:
        """Market seconds per wall second."""
        return self.local_options.time_scale if self.is_local else 1.0


# What a relaunch may change; everything else decides the numbers of the run or its identity.
AMENDABLE = frozenset({"limits", "infra", "checkpoints", "tracking"})


def parse_spec(document: dict[str, Any]) -> RunSpec:
    """Validate a spec that was resolved before, as run.json holds it."""
    return RunSpec.model_validate(document)


def suggest(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean X?" for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def resolve_store(store: str) -> str:
    """Return the store as a URL; a plain path becomes an absolute file:// URL.

    Raises:
        SpecError: a scheme that no store has.
    """
    if store.rstrip("/") in ("s3-local", LOCAL_S3):
        return LOCAL_S3
    if "://" not in store:
        return _folder_url(store)
    scheme = store.partition("://")[0]
    if scheme not in ("file", *CLOUD_SCHEMES):
        raise SpecError(
            f"store: unknown scheme {scheme}:// in {store!r}.",
            "Write s3://bucket/prefix (or gs://, az://), s3-local, file:///path, or a path.",
        )
    try:
        parts = urlsplit(store)
    except ValueError as error:
        raise SpecError(f"store: {store!r} is no address: {error}.", "Correct it.") from error
    if scheme in CLOUD_SCHEMES and not parts.netloc:
        raise SpecError(f"store: {store!r} names no bucket.", f"Write {scheme}://bucket/prefix.")
    if scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
        raise SpecError(f"store: {store!r} is not absolute.", "Write file:///path, or a path.")
    return store.rstrip("/")


def _folder_url(path: str) -> str:
    try:
        return Path(path).expanduser().resolve().as_uri()
    except (OSError, RuntimeError, ValueError) as error:
        raise SpecError(f"store: {path!r:.80} is no folder: {error}.", "Correct it.") from error
