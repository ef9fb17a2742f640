"""Exact resume, proved: every step that was trained again is compared with its recorded value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.ledger.measurements import Measured, steps_of
from train.spool import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """`num_steps` comparisons; `max_abs_diff` is over loss and gradient norm, None without any."""

    num_steps: int
    max_abs_diff: float | None
    differing: tuple[int, ...]
    """Steps whose values differ, in order."""


def compare_replayed(measured: Sequence[Measured]) -> Replay:
    """Compare each repeated step with its first record; any bit of difference shows."""
    first: dict[int, Step] = {}
    differences: list[tuple[int, float]] = []
    for _, step in steps_of(measured):
        reference = first.setdefault(step.step, step)
        if reference is not step:
            differences.append((step.step, _difference(reference, step)))
    return Replay(
        num_steps=len(differences),
        max_abs_diff=max((size for _, size in differences), default=None),
        differing=tuple(sorted({number for number, size in differences if size > 0})),
    )


def _difference(one: Step, other: Step) -> float:
    return max(abs(one.loss - other.loss), abs(one.grad_norm - other.grad_norm))
