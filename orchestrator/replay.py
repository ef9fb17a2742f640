"""Exact resume, proved: every step that was trained again is compared with its recorded value.

Bits are the same only where the setup is: another world size adds up in another order, another GPU
rounds otherwise. Steps are compared between attempts of one setup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.ledger.fold import RunState
from orchestrator.ledger.measurements import Measured, steps_of
from train.spool import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What an attempt ran on, as far as it decides the bits of a step."""

    world_size: int | None
    accelerators: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """`num_steps` comparisons; `max_abs_diff` is over loss and gradient norm, None without any."""

    num_steps: int
    max_abs_diff: float | None
    differing: tuple[int, ...]
    """Steps whose values differ, in order."""


def setups(state: RunState) -> dict[int, Setup]:
    """Return the setup of each attempt that the ledger knows."""
    return {
        launch.attempt: Setup(world_size=launch.world_size, accelerators=launch.offer.accelerators)
        for launch in state.launches
        if launch.attempt is not None
    }


def compare_replayed(measured: Sequence[Measured], setup_of: Mapping[int, Setup]) -> Replay:
    """Compare each repeated step with its first record in that setup; any bit of difference shows.

    Attempts that `setup_of` does not know count as one setup.
    """
    first: dict[tuple[Setup | None, int], Step] = {}
    differences: list[tuple[int, float]] = []
    for attempt, step in steps_of(measured):
        reference = first.setdefault((setup_of.get(attempt), step.step), step)
        if reference is not step:
            differences.append((step.step, _difference(reference, step)))
    return Replay(
        num_steps=len(differences),
        max_abs_diff=max((size for _, size in differences), default=None),
        differing=tuple(sorted({number for number, size in differences if size > 0})),
    )


def _difference(one: Step, other: Step) -> float:
    return max(abs(one.loss - other.loss), abs(one.grad_norm - other.grad_norm))
