"""Notices that the node goes away: all ranks agree on them, and on what there is time for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.distributed as dist

from train.errors import SpoolInvalid
from train.spool import Notice, read_notice

# A save is begun on a notice only if this many times its last duration is left.
_SAVE_MARGIN = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What all ranks agreed on before a micro-batch."""

    is_noticed: bool
    is_save_due: bool


class Agreement:
    """Lets ranks decide alike, through small messages on a gloo group of their own."""

    def __init__(self, notice_file: Path, group: dist.ProcessGroup) -> None:
        self._notice_file = notice_file
        self._group = group

    def flags(self, *, is_save_due: bool) -> Flags:
        """Agree: a notice that any rank sees is noticed, a save that any rank wants is due."""
        flags = torch.tensor([self._notice() is not None, is_save_due], dtype=torch.int32)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
        is_noticed, is_save_due = (bool(flag) for flag in flags.tolist())
        return Flags(is_noticed=is_noticed, is_save_due=is_save_due)

    def has_time_to_save(self, last_save_s: float | None, now: datetime) -> bool:
        """Agree on rank 0's answer, by the earliest deadline that any rank knows."""
        notice = self._notice()
        deadline = torch.tensor(
            [notice.deadline_at.timestamp() if notice else float("inf")], dtype=torch.float64
        )
        dist.all_reduce(deadline, op=dist.ReduceOp.MIN, group=self._group)
        left_s = deadline.item() - now.timestamp()
        answer = torch.tensor([last_save_s is None or left_s > _SAVE_MARGIN * last_save_s])
        dist.broadcast(answer, src=0, group=self._group)
        return bool(answer.item())

    def sum(self, value: float) -> float:
        """Add up over all ranks, in double precision."""
        total = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return float(total.item())

    def wait_for_all(self) -> None:
        """Return when every rank is here."""
        dist.barrier(group=self._group)

    def _notice(self) -> Notice | None:
        try:
            return read_notice(self._notice_file)
        except SpoolInvalid:
            # Half written, or of another kind: the node goes away, nobody knows when.
            return Notice(deadline_at=datetime.now(timezone.utc))
