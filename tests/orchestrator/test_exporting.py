"""A folder that a model is written to: whole or not at all, and said in two lines if not."""

from __future__ import annotations

import pytest

from orchestrator.errors import UsageError
from orchestrator.exporting import whole_folder


def write(output, error=None):
    with whole_folder(output) as folder:
        (folder / "part").write_bytes(b"1")
        if error is not None:
            raise error


def test_a_place_that_takes_no_folder_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file/model cannot be written: "):
        write(tmp_path / "file" / "model")


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path):
    with pytest.raises(UsageError, match="No space left") as raised:
        write(tmp_path / "model", OSError(28, "No space left on device"))
    assert raised.value.next_step == "Choose another folder, or make room."
    assert not list(tmp_path.iterdir())
