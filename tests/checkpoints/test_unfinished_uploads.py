"""What killed writers leave of their puts, in every store that keeps it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints.conftest import S3
from tests.checkpoints.saving import read_range

pytestmark = pytest.mark.parametrize("store_url", ["folder", S3], indirect=True)
ROOT = Path(__file__).parents[2]
KEY = "checkpoints/a"
DYING_WRITER = """
import os, signal, sys
from checkpoints.store import open_store

def source():
    for _ in range(3):
        yield bytes(16 << 20)
    os.kill(os.getpid(), signal.SIGKILL)

open_store(sys.argv[1]).put(sys.argv[2], source())
"""


def die_in_a_put(store):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", DYING_WRITER, store.url, KEY], env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_a_killed_writer_s_put_is_aborted_and_named_once_and_the_old_object_stays(store):
    store.put(KEY, b"old")
    store.put("checkpoints/b", b"another")
    die_in_a_put(store)
    assert store.abort_uploads("checkpoints/", lambda key: True) == [KEY]
    assert store.abort_uploads("checkpoints/", lambda key: True) == []
    assert store.get(KEY).data == b"old"
    assert [entry.key for entry in store.list("")] == [KEY, "checkpoints/b"]


def test_only_stale_puts_of_keys_with_the_prefix_are_aborted(store):
    die_in_a_put(store)
    assert store.abort_uploads("logs/", lambda key: True) == []
    assert store.abort_uploads("checkpoints/", lambda key: key != KEY) == []
    assert store.abort_uploads("", lambda key: key == KEY) == [KEY]
    assert store.list("") == []


def test_a_live_writer_s_put_that_is_not_stale_goes_on(store):
    seen = []

    def source():
        for _ in range(3):
            yield bytes(16 << 20)
        assert store.abort_uploads("", lambda key: bool(seen.append(key))) == []
        yield b"the end"

    store.put(KEY, source())
    assert seen == [KEY]
    assert read_range(store, KEY, 48 << 20, 7) == b"the end"
