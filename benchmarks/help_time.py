"""How long `orchestrate --help` takes, beside bare Python, a bare click program and SkyPilot.

Run: python -m benchmarks.help_time
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 21
TARGET_MS = 150
BARE_CLICK = "import click; click.Group('x').main(['--help'], standalone_mode=False)"


def main() -> None:
    """Time the commands in turn, so that the machine's drift hits all of them; print medians."""
    orchestrate = Path(sys.executable).with_name("orchestrate")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "bare click --help": [sys.executable, "-c", BARE_CLICK],
        "orchestrate --help": [str(orchestrate), "--help"],
    }
    sky = shutil.which("sky")
    if sky is not None:
        commands["sky --help"] = [sky, "--help"]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(RUNS + 1):
        for name, command in commands.items():
            times[name].append(_time_ms(command))
    print(f"{'command':<22}{'min':>9}{'median':>9}{'max':>9}  ms, {RUNS} runs after one warm-up")
    for name, (_, *counted) in times.items():
        low, middle, high = min(counted), statistics.median(counted), max(counted)
        print(f"{name:<22}{low:>9.0f}{middle:>9.0f}{high:>9.0f}")
    median = statistics.median(times["orchestrate --help"][1:])
    print(f"orchestrate --help: {median:.0f} ms, target {TARGET_MS} ms")
    if sky is None:
        print("SkyPilot is not installed here: no peer beside it (pip install skypilot==0.14.1)")


def _time_ms(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    main()
