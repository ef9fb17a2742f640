"""Files that people name: what has no end is not read, and no more of a file than was asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from checkpoints.regular_files import open_regular, read_regular


@pytest.fixture
def fifo(tmp_path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_a_file_is_read_to_its_bound(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert read_regular(path, 3) == b"abc"
    with pytest.raises(OSError, match="more than 2 bytes"):
        read_regular(path, 2)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused(device):
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(Path(device))


def test_a_pipe_is_refused_and_not_waited_for(fifo):
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(fifo)


def test_a_file_that_does_not_say_its_size_is_read_to_the_bound_all_the_same():
    path = Path("/proc/self/maps")
    assert path.stat().st_size == 0
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_regular(path, 10)
