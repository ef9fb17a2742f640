"""The spool file, which the training loop and the thread that saves both append to."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import pytest

from train.spool import Evaluated, Spool, read_records, spool_path

NUM_EACH = 2000
AT = datetime(2026, 11, 29, tzinfo=timezone.utc)


@pytest.fixture
def switching_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_records_of_two_threads_are_each_there_once(tmp_path, switching_often):
    spool = Spool(spool_path(tmp_path))

    def append(first):
        for step in range(first, first + NUM_EACH):
            spool.append(make_record(step))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(append, (0, NUM_EACH)))
    found = [record.step for record in read_records(spool_path(tmp_path), 0)[0]]
    assert sorted(found) == list(range(2 * NUM_EACH))


def make_record(step):
    return Evaluated(at=AT, step=step, loss=1.0, num_trained_tokens=1)
