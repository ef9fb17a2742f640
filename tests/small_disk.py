"""A disk that is small enough to be filled: a tmpfs of its own, mounted for a test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(folder: Path, *, megabytes: int = 1) -> Iterator[SmallDisk]:
    """Mount a disk with room for 64 files at `folder`; as root, as the tests' clouds need too."""
    folder.mkdir(parents=True)
    options = f"size={megabytes}m,nr_inodes=64"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class SmallDisk:
    """The disk, and how often writing to it was seen to fail after it was spoiled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_proven = 0
        """How often it was made to refuse, and seen to."""

    def fill(self) -> None:
        """Leave no byte."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            self._until_refused(lambda: file.write(bytes(4096)))
        self._prove()

    def use_up_files(self) -> None:
        """Leave no inode."""
        numbers = iter(range(1 << 20))
        self._until_refused(lambda: (self.folder / f"filler-{next(numbers)}").touch())
        self._prove()

    def make_read_only(self) -> None:
        """Take no write at all, not even of what is open."""
        # By force: files that are open for writing would hold it up.
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
        self._prove()

    def empty(self) -> None:
        """Give back what was taken."""
        for path in self.folder.glob("filler*"):
            path.unlink()

    def _until_refused(self, write: object) -> None:
        assert callable(write)
        while True:
            try:
                write()
            except OSError:
                return

    def _prove(self) -> None:
        try:
            (self.folder / "filler-probe").write_bytes(bytes(4096))
        except OSError:
            self.num_proven += 1
        else:
            raise AssertionError("the disk still takes files")
