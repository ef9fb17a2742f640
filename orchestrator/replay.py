"""Exact resume, proved: every step that was trained again is compared with its recorded value.

Only what has to be equal is compared: attempts of one world size, device and code (`numerics`), on
the same batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.ledger.measurements import Measured
from train.spool import Resumed, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """`num_steps` comparisons; `max_abs_diff` is over loss and gradient norm, None without any."""

    num_steps: int
    max_abs_diff: float | None
    differing: tuple[int, ...]
    """Steps whose values differ, in order."""
    num_incomparable: int = 0
    """Steps that were trained again by ranks whose rounding differs."""


def compare_replayed(measured: Sequence[Measured]) -> Replay:
    """Compare each repeated step with its first record; any bit of difference shows."""
    numerics: dict[int, str | None] = {}
    first: dict[tuple[str | None, int, int | None], Step] = {}
    seen: set[tuple[int, int | None]] = set()
    differences: list[tuple[int, float]] = []
    num_incomparable = 0
    for one in measured:
        if isinstance(one.record, Resumed):
            numerics[one.attempt] = one.record.numerics
        if not isinstance(one.record, Step):
            continue
        step, key = one.record, (one.record.step, one.record.batch)
        reference = first.setdefault((numerics.get(one.attempt), *key), step)
        if reference is not step:
            differences.append((step.step, _difference(reference, step)))
        elif key in seen:
            num_incomparable += 1
        seen.add(key)
    return Replay(
        num_steps=len(differences),
        max_abs_diff=max((size for _, size in differences), default=None),
        differing=tuple(sorted({number for number, size in differences if size > 0})),
        num_incomparable=num_incomparable,
    )


def _difference(one: Step, other: Step) -> float:
    return max(abs(one.loss - other.loss), abs(one.grad_norm - other.grad_norm))
