"""When a silent trainer is taken for hung."""

import signal
import subprocess
import sys

import pytest

from orchestrator.agent.hang import HangWatch
from train.spool import Pulse


@pytest.fixture
def pulse(tmp_path):
    return Pulse(tmp_path, rank=0)


@pytest.fixture
def watch(tmp_path, pulse):
    watch = HangWatch(tmp_path, num_steps=100, slow_s=1800, step_s=120, now=0)
    assert not watch.is_hung(0)
    return watch


def look(watch, *, start, end):
    """Look every second; return when it is taken for hung, None if it is not."""
    return next((now for now in range(start, end) if watch.is_hung(now)), None)


def train(watch, seconds, num_steps=10):
    for step in range(1, num_steps + 1):
        watch.note_step(step, seconds)


def test_a_start_may_take_long(watch):
    assert look(watch, start=1, end=4000) == 1801


@pytest.mark.parametrize(("seconds", "limit"), [(1.0, 120), (60.0, 300)])
def test_between_steps_five_slow_ones_or_two_minutes_are_enough(watch, seconds, limit):
    train(watch, seconds)
    assert watch.limit_s == limit
    assert look(watch, start=1, end=4000) == limit + 1


def test_one_slow_step_in_a_hundred_does_not_count(watch):
    train(watch, 1.0, 99)
    watch.note_step(99, 500.0)
    assert watch.limit_s == 120


def test_after_the_last_step_evaluation_may_take_long(watch):
    train(watch, 1.0, 100)
    assert look(watch, start=1, end=1800) is None


def test_a_pulse_is_a_sign_of_life(watch, pulse):
    train(watch, 1.0)
    assert look(watch, start=1, end=100) is None
    pulse.beat()
    assert look(watch, start=100, end=220) is None
    assert look(watch, start=220, end=300) == 221


def test_what_the_trainer_says_is_a_sign_of_life(watch):
    train(watch, 1.0)
    assert look(watch, start=1, end=100) is None
    watch.note_life(100)
    assert look(watch, start=100, end=220) is None


def test_an_agent_that_was_stopped_itself_blames_nobody(watch):
    train(watch, 1.0)
    assert look(watch, start=1, end=100) is None
    assert look(watch, start=5000, end=5120) is None
    assert look(watch, start=5120, end=5200) == 5121


def test_the_stacks_of_a_hung_rank_are_in_its_output(tmp_path):
    program = (
        "import faulthandler, pathlib, signal, sys, time\n"
        "from train.spool import Pulse\n"
        "faulthandler.register(signal.SIGUSR1, all_threads=True)\n"
        "Pulse(pathlib.Path(sys.argv[1]), 0)\n"
        "def hanging_collective():\n"
        "    print('hangs', flush=True)\n"
        "    time.sleep(60)\n"
        "hanging_collective()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as rank:
        assert rank.stdout.readline() == "hangs\n"
        watch = HangWatch(tmp_path, num_steps=1, slow_s=1, step_s=1, now=0)
        watch.is_hung(0)
        watch.dump_stacks()
        assert rank.poll() is None
        rank.send_signal(signal.SIGKILL)
        assert "hanging_collective" in rank.stderr.read()
