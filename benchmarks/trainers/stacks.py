"""Where the training loop's time goes: its stack, looked at 200 times a second.

A profiler that hooks every call would make Python look slower than it is beside PyTorch's kernels.
Kernels run without the interpreter's lock, so that a second thread sees them at work.
"""

from __future__ import annotations

import sys
import threading
import time
from enum import Enum
from types import CodeType, FrameType

_PERIOD_S = 0.005
_NUM_SHOWN = 6


class Phase(str, Enum):
    """What a step cannot do without, and the rest."""

    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    OUTSIDE = "outside"


class Stacks:
    """Samples of the stack of the thread that made it."""

    def __init__(self) -> None:
        self._thread_id = threading.get_ident()
        self._is_over = threading.Event()
        self._seconds = dict.fromkeys(Phase, 0.0)
        self._functions: dict[str, float] = {}
        self._sampler = threading.Thread(target=self._sample, name="stacks", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._sampler.start()

    def stop(self) -> None:
        """Look no longer."""
        self._is_over.set()
        self._sampler.join()

    def shares(self) -> dict[str, float]:
        """Return each phase's share of the time."""
        total = sum(self._seconds.values())
        return {phase.value: seconds / total for phase, seconds in self._seconds.items()}

    def outside(self) -> dict[str, float]:
        """Return the share of the functions of ours that are busiest outside the phases."""
        total = sum(self._seconds.values())
        busiest = sorted(self._functions, key=self._functions.__getitem__, reverse=True)
        return {name: self._functions[name] / total for name in busiest[:_NUM_SHOWN]}

    def _sample(self) -> None:
        looked_at_s = time.perf_counter()
        while not self._is_over.wait(_PERIOD_S):
            # Code that keeps the lock delays this thread, and is still to count.
            now_s = time.perf_counter()
            seconds, looked_at_s = now_s - looked_at_s, now_s
            frame = sys._current_frames().get(self._thread_id)
            codes = _codes_within_loop(frame)
            phase = next(filter(None, map(_phase_of, codes)), Phase.OUTSIDE)
            self._seconds[phase] += seconds
            if phase is Phase.OUTSIDE:
                name = _innermost_of_ours(codes)
                self._functions[name] = self._functions.get(name, 0.0) + seconds


def _codes_within_loop(frame: FrameType | None) -> list[CodeType]:
    """Return the code of all frames, outermost first."""
    codes = []
    while frame is not None:
        codes.append(frame.f_code)
        frame = frame.f_back
    return codes[::-1]


def _phase_of(code: CodeType) -> Phase | None:
    """Return the phase that a frame begins; the loss belongs to forward, clipping to optimizer."""
    file, name = code.co_filename, code.co_name
    if file.endswith(("/torch/nn/modules/module.py", "/torch/nn/functional.py", "/train/loss.py")):
        return Phase.FORWARD
    # The loss with what leads to it; and what FSDP does before and after a forward method.
    if "loss_sum" in name or ("/torch/distributed/fsdp/" in file and "forward" in name):
        return Phase.FORWARD
    if file.endswith("/torch/_tensor.py") and name == "backward":
        return Phase.BACKWARD
    is_clipping = file.endswith("/train/optimizer.py") and name == "clip_gradients"
    # PyTorch's wrapper around step; zero_grad is not one.
    if is_clipping or ("/torch/optim/" in file and name == "wrapper"):
        return Phase.OPTIMIZER
    return None


def _innermost_of_ours(codes: list[CodeType]) -> str:
    ours = [
        code for code in codes if "/train/" in code.co_filename and "/torch" not in code.co_filename
    ]
    if not ours:
        return "elsewhere"
    inner = ours[-1]
    return f"{inner.co_filename.rpartition('/train/')[2]}:{inner.co_name}"
