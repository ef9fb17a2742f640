"""What every variant of the checkpoint benchmark can do, one object per rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

Tensors: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """A save that was begun; by default one that was over when `begin` returned."""

    fence: Callable[[], None] = lambda: None
    """Returns when the tensors may change."""
    is_durable: Callable[[], bool] = lambda: True
    """Says whether `finish` would return at once."""
    finish: Callable[[], object] = lambda: None
    """Returns when the checkpoint can be loaded; raises if it cannot."""


class Checkpointer(Protocol):
    """One rank's part in the saves of a variant; its constructor imports what the variant needs."""

    def set_up(self, tensors: Tensors) -> None:
        """Do what is done once, before the first save."""

    def begin(self, tensors: Tensors, step: int) -> Saving:
        """Save; returns when the training may go on to read the tensors."""

    def load(self, tensors: Tensors, step: int) -> float:
        """Fill the tensors of a single process with what all ranks saved; return the seconds."""

    def close(self) -> None:
        """Let go of processes and memory."""
