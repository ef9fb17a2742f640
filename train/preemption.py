"""What all ranks must see alike: notices that the node goes away, and what becomes of saves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.distributed as dist

from train.errors import SpoolInvalid
from train.spool import Notice, Pulse, read_notice
from train.termination import termination_notice


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What all ranks agreed on before a micro-batch."""

    is_noticed: bool
    is_save_due: bool
    is_save_in_flight: bool


class Agreement:
    """Lets ranks decide alike, through small messages on a gloo group of their own."""

    def __init__(self, notice_file: Path, group: dist.ProcessGroup, pulse: Pulse) -> None:
        self._notice_file = notice_file
        self._group = group
        self.pulse = pulse

    def flags(self, *, is_save_due: bool, is_save_in_flight: bool) -> Flags:
        """Agree: what any rank sees, wants or still does counts for all."""
        self.pulse.beat()
        mine = [self._notice() is not None, is_save_due, is_save_in_flight]
        flags = torch.tensor(mine, dtype=torch.int32)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
        is_noticed, is_due, is_in_flight = (bool(flag) for flag in flags.tolist())
        return Flags(is_noticed=is_noticed, is_save_due=is_due, is_save_in_flight=is_in_flight)

    def seconds_left(self) -> float:
        """Return the time until the earliest deadline that any rank knows; negative when over."""
        notice = self._notice()
        left_s = math.inf
        if notice is not None:
            left_s = (notice.deadline_at - datetime.now(timezone.utc)).total_seconds()
        earliest = torch.tensor([left_s], dtype=torch.float64)
        dist.all_reduce(earliest, op=dist.ReduceOp.MIN, group=self._group)
        return float(earliest.item())

    def from_first(self, *values: int) -> list[int]:
        """Return rank 0's values on every rank."""
        agreed = torch.tensor(values, dtype=torch.int64)
        dist.broadcast(agreed, group=self._group, group_src=0)
        return [int(value) for value in agreed.tolist()]

    def first_complaint(self, complaint: str | None) -> str | None:
        """Return the complaint of the lowest rank that has one, on every rank."""
        complaints: list[str | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(complaints, complaint, group=self._group)
        return next((found for found in complaints if found is not None), None)

    def sum(self, value: float) -> float:
        """Add up over all ranks, in double precision."""
        total = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return float(total.item())

    def wait_for_all(self) -> None:
        """Return when every rank is here."""
        dist.barrier(group=self._group)

    def _notice(self) -> Notice | None:
        told = [notice for notice in (self._read(), termination_notice()) if notice is not None]
        return min(told, key=lambda notice: notice.deadline_at, default=None)

    def _read(self) -> Notice | None:
        try:
            return read_notice(self._notice_file)
        except SpoolInvalid:
            # Half written, or of another kind: the node goes away, nobody knows when.
            return Notice(deadline_at=datetime.now(timezone.utc))
