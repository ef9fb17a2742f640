"""What a backend tells the agent that it starts on a node."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.ledger.facts import QuotedOffer


class AgentConfig(BaseModel):
    """One launch's node: where it is, whom it serves and how often it speaks."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    schema_version: Literal[1] = 1
    store: str
    """URL of the run folder."""
    launch: str
    """The launch that this node belongs to; empty where node 0 has yet to say."""
    offer: QuotedOffer
    """What the node is billed as."""
    ranks: int = Field(ge=1)
    """Training processes on this node."""
    node: int = Field(default=0, ge=0)
    """This node among those of the launch; 0 leads."""
    num_nodes: int = Field(default=1, ge=1)
    """Nodes of the launch."""
    head: str = "127.0.0.1"
    """Address of node 0."""
    address: str = "127.0.0.1"
    """Address by which the other nodes know this one."""
    port: int = Field(default=29400, ge=1024, lt=65535)
    """Where the ranks meet on node 0; its agent listens on the next one."""
    join_seconds: float = Field(default=900, gt=0)
    """How long the nodes of a launch wait for one another."""
    checks_node: bool = False
    """Look at disk and network before the start."""
    num_gpus: int | None = Field(default=None, ge=1)
    """GPUs that must be there and well before the start; None: nobody looks."""
    scratch: Path
    """The node's disk; gone with the node."""
    metadata: Path | None = None
    """Where a simulated node finds what a cloud's metadata service would say; None: ask that."""
    owner: str | None = None
    """Writer of the heartbeat without which the node stops itself."""
    lease_seconds: float = Field(default=900, gt=0)
    """How long that heartbeat may stand still."""
    silent_seconds: float = Field(default=480, gt=0)
    """The same while the store can be read: it is the owner then who is gone."""
    upload_seconds: float = Field(default=20, gt=0)
    """Longest time between uploads of measurements."""
    guard_seconds: float = Field(default=60, gt=0)
    """How often to look whether the run is still ours, and within its budget."""
    poll_seconds: float = Field(default=1, gt=0)
    """How often the agent looks at the trainer, at notices and requests."""
    hang_seconds: float = Field(default=1800, gt=0)
    """How long the trainer may give no sign of life while it starts or ends."""
    step_hang_seconds: float = Field(default=120, gt=0)
    """The same between steps, unless five times their 99th percentile is longer."""

    @property
    def world_size(self) -> int:
        """Training processes of the launch."""
        return self.ranks * self.num_nodes
