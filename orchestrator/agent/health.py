"""Whether a node can do its part: GPUs and disk before anything is started, its disk afterwards.

A node that cannot is given back for another one, which costs minutes; found out later, it costs the
whole gang's time, again and again.
"""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from checkpoints.errors import StoreUnreachable
from orchestrator.agent.member import HeadMissing

# A freshly driven GPU has a few hundred MB in use; more is another program, or one that hangs.
_LARGEST_USED = 0.1
_TIMEOUT_S = 60.0  # a driver that initializes eight GPUs takes up to half of it
_GPU_FIELDS = ("index", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total")
_ROW_FIELDS = ("gpu_bus_id", "remapped_rows.pending", "remapped_rows.failure")
# NVIDIA's Xid catalog: errors of the hardware, not of a program. 48 double-bit ECC, 74 NVLink,
# 79 fallen off the bus, 95 uncontained ECC, 119 and 120 the GPU's own processor hangs.
_FATAL_XIDS = frozenset({48, 74, 79, 95, 119, 120})
_XID = re.compile(r"NVRM: Xid \((?P<where>[^)]*)\): (?P<number>\d+)")
_SPARE_DISK = 2 << 30
_PAGE = 4096
# What is said of a disk that is full, read-only or broken; other errors of the system may be ours.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


def find_fault(scratch: Path, *, num_input_bytes: int, num_gpus: int | None) -> str | None:
    """Return what is wrong with this node, None if nothing; `num_gpus` None looks at no GPU."""
    return _disk_fault(scratch, num_input_bytes) or (num_gpus and _gpu_fault(num_gpus)) or None


def is_trouble_of_the_node(error: Exception) -> bool:
    """Say whether a node cannot take part for its disk, or its way to the store or to node 0."""
    if isinstance(error, OSError):
        return error.errno in _DISK_ERRORS
    return isinstance(error, (StoreUnreachable, HeadMissing))


def find_write_fault(scratch: Path) -> str | None:
    """Return why the disk takes no file, None if it does."""
    try:
        with tempfile.TemporaryFile(dir=scratch) as file:
            file.write(bytes(_PAGE))
    except OSError as error:
        return f"{scratch} cannot be written: {error.strerror}"
    return None


def _disk_fault(scratch: Path, num_input_bytes: int) -> str | None:
    free, needed = shutil.disk_usage(scratch).free, num_input_bytes + _SPARE_DISK
    if free >= needed:
        return None
    return f"{scratch} has {free / 1e9:.1f} GB free, and the run needs {needed / 1e9:.1f}"


def _gpu_fault(num_gpus: int) -> str | None:
    rows = _ask(["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}"])
    if isinstance(rows, str):
        return rows
    if len(rows) != num_gpus:
        return f"nvidia-smi shows {len(rows)} GPUs and not {num_gpus}"
    faults = (_fault_of(*row) for row in rows)
    return next((fault for fault in faults if fault), None) or _row_fault() or _xid_fault()


def _fault_of(index: str, total: str, used: str, num_errors: str) -> str | None:
    # "[N/A]" where a GPU does not count, or has no memory of its own.
    if num_errors.isdigit() and int(num_errors) > 0:
        return f"GPU {index} has {num_errors} uncorrected memory errors"
    is_known = total.isdigit() and used.isdigit()
    if is_known and int(used) > _LARGEST_USED * int(total):
        return f"GPU {index} has {used} of {total} MiB in use already"
    return None


def _row_fault() -> str | None:
    rows = _ask(["nvidia-smi", f"--query-remapped-rows={','.join(_ROW_FIELDS)}"])
    if isinstance(rows, str):
        return None  # GPUs older than the A100 have no spare rows
    for bus, pending, failure in rows:
        if "yes" in failure.lower() or failure == "1":
            return f"GPU {bus} could not replace a broken row of its memory"
        if "yes" in pending.lower() or pending == "1":
            return f"GPU {bus} waits for a reset to replace a broken row of its memory"
    return None


def _xid_fault() -> str | None:
    """Look through the kernel's messages, where this user may read them."""
    for command in (["dmesg"], ["sudo", "-n", "dmesg"]):
        said = _run(command)
        if said is not None and said.returncode == 0:
            for found in _XID.finditer(said.stdout):
                if int(found["number"]) in _FATAL_XIDS:
                    return f"the kernel reports Xid {found['number']} of {found['where']}"
            return None
    return None


def _ask(command: Sequence[str]) -> list[list[str]] | str:
    """Return the rows of nvidia-smi's answer, or its complaint."""
    said = _run([*command, "--format=csv,noheader,nounits"])
    if said is None:
        return "nvidia-smi is missing or does not answer"
    if said.returncode != 0:
        lines = (said.stdout + said.stderr).strip().splitlines()
        return f"nvidia-smi fails: {lines[0] if lines else said.returncode}"
    num_fields = command[1].count(",") + 1
    rows = [[field.strip() for field in line.split(",")] for line in said.stdout.splitlines()]
    return [row for row in rows if len(row) == num_fields]


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
