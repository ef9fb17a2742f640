"""What only the folder store has: files that others can see, and a file system that says no."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints.errors import StoreRefused
from checkpoints.store import open_store

ROOT = Path(__file__).parents[2]


def test_nothing_is_made_before_the_first_write(tmp_path):
    store = open_store((tmp_path / "runs" / "a").as_uri())
    assert store.list("") == []
    assert list(tmp_path.iterdir()) == []
    store.put("a", b"x")
    assert (tmp_path / "runs" / "a" / "a").read_bytes() == b"x"


def test_a_folder_that_cannot_be_written_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for act in (lambda s: s.put("a", b"x"), lambda s: s.create("a", b"x")):
        with pytest.raises(StoreRefused, match="file") as caught:
            act(open_store((tmp_path / "file").as_uri()))
        assert "choose another store" in caught.value.next_step


def test_a_key_below_a_file_is_refused(folder_store):
    folder_store.put("a", b"x")
    for write in (folder_store.put, folder_store.create):
        with pytest.raises(StoreRefused):
            write("a/b", b"x")


def test_own_files_never_show(folder_store, tmp_path):
    version = folder_store.create("a", b"x")
    folder_store.replace("a", b"y", version)
    (tmp_path / "run" / ".temporary" / "1-dead").write_bytes(b"half")
    assert [entry.key for entry in folder_store.list("")] == ["a"]


def test_emptied_folders_are_removed(folder_store, tmp_path):
    folder_store.put("a/b/c", b"x")
    folder_store.put("a/d", b"x")
    folder_store.delete(["a/b/c"])
    assert not (tmp_path / "run" / "a" / "b").exists()
    assert folder_store.get("a/d").data == b"x"


def test_a_writer_killed_in_a_put_leaves_the_old_object_and_no_obstacle(folder_store, tmp_path):
    folder_store.put("a", b"old")
    script = (
        "import os, signal, sys; from checkpoints.store import open_store\n"
        "def source():\n"
        "    yield b'half'\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "open_store(sys.argv[1]).put('a', source())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, folder_store.url], env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert folder_store.get("a").data == b"old"
    (left,) = (tmp_path / "run" / ".temporary").iterdir()
    folder_store.put("a", b"new")
    assert left.read_bytes() == b"half"

    os.utime(left, (0, 0))  # long ago
    open_store(folder_store.url).put("a", b"newer")
    assert not left.exists()


def test_a_live_writer_s_put_is_never_aborted(folder_store):
    def source():
        yield b"be"
        assert folder_store.abort_uploads("", lambda key: True) == []
        yield b"gun"

    folder_store.put("a", source())
    assert folder_store.get("a").data == b"begun"


def test_a_lock_holder_s_death_frees_the_lock(folder_store):
    version = folder_store.create("a", b"one")
    script = (
        "import os, signal, sys; from checkpoints.folder_store import FolderStore\n"
        "store = FolderStore(sys.argv[1])\n"
        "with store._locked():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    folder = folder_store.url.removeprefix("file://")
    done = subprocess.run([sys.executable, "-c", script, folder], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    folder_store.replace("a", b"two", version)
    assert folder_store.get("a").data == b"two"
