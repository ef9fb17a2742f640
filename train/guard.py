"""Judge a batch before its update: one that is out of all proportion is left out.

Its loss or gradient is known before the weights change, so leaving it out costs nothing but its
samples. Several in a row say that the weights are to blame: then they are rolled back, and the
batches that led there are left out too (PaLM, Chowdhery et al. 2022, section 5.1). What is left out
follows from the data and the weights and not from when the run was saved: an older checkpoint is
trained on to where the batches are left out. So an attempt that is resumed does the same.
"""

from __future__ import annotations

import math
from dataclasses import replace

from train.state import Batches, Progress

# More in a row than this are not the batches' fault.
MAX_IN_A_ROW = 3
MAX_ROLL_BACKS = 2
# Of `roll_back_batches`, twice: the second may go back further from where the first was too little.
_REACH = 3
# The mean of about as many steps, as in Adam's first moment.
_DECAY = 0.95
# Before, a run has no usual loss.
_MIN_LOSSES = 20


def why_left_out(
    progress: Progress, loss: float, grad_norm: float, spike_factor: float | None
) -> str | None:
    """Return what is wrong with a batch, None if it is to be trained on."""
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        return f"loss {loss}, gradient norm {grad_norm}"
    if spike_factor is None or progress.num_losses < _MIN_LOSSES:
        return None
    usual = max(usual_loss(progress), 1e-9)
    if loss > spike_factor * usual:
        return f"loss {loss:.4g}, {loss / usual:.1f} times the usual {usual:.4g}"
    return None


def next_batch(number: int, skipped: tuple[Batches, ...]) -> int:
    """Return the first batch from `number` on that no roll-back has left out."""
    for first, stop in sorted(skipped):
        if first <= number < stop:
            number = stop
    return number


def is_in_history(batch: int, skipped: tuple[Batches, ...]) -> bool:
    """Say whether a state before `batch` is one that training has come by, or that was given up."""
    return not any(first < batch < stop for first, stop in skipped)


def to_skip(progress: Progress, stop: int, distance: int) -> Batches:
    """Return the batches that a roll-back leaves out: up to `stop`, from some before the bad ones.

    Further back each time, where the weights have not got over the last one.
    """
    first = progress.batch - distance
    if progress.skipped and first < progress.skipped[-1][1]:
        first = progress.skipped[-1][0] - distance
        stop = max(stop, progress.skipped[-1][1])
    return max(0, first), stop


def reach(roll_back_batches: int) -> int:
    """Return how many batches before a checkpoint the next two roll-backs may want to go."""
    return _REACH * roll_back_batches + MAX_IN_A_ROW


def usual_loss(progress: Progress) -> float:
    """Return the running mean, corrected for its beginning at 0 (Kingma & Ba 2015, section 3)."""
    return progress.mean_loss / (1 - _DECAY**progress.num_losses)


def note_loss(progress: Progress, loss: float) -> Progress:
    """Return the progress with the loss of a batch that was trained on in its running mean."""
    return replace(
        progress,
        mean_loss=_DECAY * progress.mean_loss + (1 - _DECAY) * loss,
        num_losses=progress.num_losses + 1,
    )
