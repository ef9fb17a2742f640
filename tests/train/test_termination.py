"""SIGTERM, in processes of its own."""

import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

ROOT = Path(__file__).parents[2]
WATCH = """
import os, subprocess, sys, time
from train.termination import defy_launcher, termination_notice, watch_termination
watch_termination(os.getppid() if {has_launcher} else None)
if {defies}: defy_launcher()
subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 15); print('alive')"])
print("ready", flush=True)
sys.stdin.readline()
time.sleep(0.1)
print(termination_notice() and termination_notice().model_dump_json())
"""


def ask_to_end(*, has_launcher=False, defies=False, times=100):
    """Return the exit status and what the process says after so many signals of its parent."""
    code = WATCH.format(has_launcher=has_launcher, defies=defies)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout.readline() == "alive\n"  # what it starts does not end either
        assert process.stdout.readline() == "ready\n"
        for _ in range(times):
            process.send_signal(signal.SIGTERM)
        out, _ = process.communicate("\n", timeout=20)
    return process.returncode, out


def test_a_storm_of_sigterms_is_one_notice_of_half_a_minute():
    status, out = ask_to_end()
    assert status == 0
    deadline_at = datetime.fromisoformat(out.split('"')[3].replace("Z", "+00:00"))
    left = deadline_at - datetime.now(timezone.utc)
    assert timedelta(seconds=20) < left <= timedelta(seconds=30)


def test_the_launcher_s_sigterm_ends_a_rank_at_once():
    assert ask_to_end(has_launcher=True, times=1) == (128 + signal.SIGTERM, "")


def test_a_rank_that_still_has_to_say_how_it_ended_defies_its_launcher():
    assert ask_to_end(has_launcher=True, defies=True) == (0, "None\n")
