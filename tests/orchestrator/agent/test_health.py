"""Nodes that are unfit for their part, by what an nvidia-smi of the test says."""

from __future__ import annotations

import errno
import os

import pytest

from checkpoints.errors import StoreRefused, StoreUnreachable
from orchestrator.agent.health import find_fault, is_trouble_of_the_node

GOOD = "\n".join(f"{gpu}, 81559, 612, 0" for gpu in range(8))


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Put an nvidia-smi and a dmesg first on the path that say what the test wants."""
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    def say(gpus: str, rows: str = "", kernel: str = "", status: int = 0) -> None:
        (tools / "gpus").write_text(gpus)
        (tools / "rows").write_text(rows)
        (tools / "kernel").write_text(kernel)
        script = (
            f'#!/bin/sh\ncase "$1" in *remapped*) cat {tools}/rows;; *) cat {tools}/gpus;; esac\n'
        )
        for name, body in {
            "nvidia-smi": f"{script}exit {status}\n",
            "dmesg": f"#!/bin/sh\ncat {tools}/kernel\n",
        }.items():
            (tools / name).write_text(body)
            (tools / name).chmod(0o755)

    return say


def look(folder, num_gpus: int | None = 8, num_input_bytes: int = 0) -> str | None:
    return find_fault(folder, num_input_bytes=num_input_bytes, num_gpus=num_gpus)


def test_node_that_is_well_has_no_fault(smi, tmp_path):
    smi(GOOD, rows="00000000:07:00.0, No, No\n", kernel="NVRM: Xid (PCI:0000:07:00): 13, pid=1\n")
    assert look(tmp_path) is None


def test_gpus_that_do_not_count_errors_are_well(smi, tmp_path):
    smi("0, 15360, 3, [N/A]\n")
    assert look(tmp_path, num_gpus=1) is None


@pytest.mark.parametrize(
    ("gpus", "rows", "kernel", "fault"),
    [
        (GOOD.rpartition("\n")[0], "", "", "nvidia-smi shows 7 GPUs and not 8"),
        (GOOD.replace("3, 81559, 612, 0", "3, 81559, 612, 2"), "", "", "GPU 3 has 2 uncorrected"),
        (GOOD.replace("5, 81559, 612", "5, 81559, 40000"), "", "", "GPU 5 has 40000 of 81559 MiB"),
        (GOOD, "00000000:07:00.0, No, Yes", "", "could not replace a broken row"),
        (GOOD, "00000000:07:00.0, Yes, No", "", "waits for a reset"),
        (GOOD, "", "[9.1] NVRM: Xid (PCI:0000:07:00): 79, pid=7, GPU has fallen", "Xid 79"),
    ],
)
def test_faults_of_gpus_are_named(smi, tmp_path, gpus, rows, kernel, fault):
    smi(gpus, rows, kernel)
    found = look(tmp_path)
    assert found is not None
    assert fault in found


def test_nvidia_smi_that_fails_is_a_fault_with_its_words(smi, tmp_path):
    smi("Unable to determine the device handle for GPU0000:07:00.0: Unknown Error", status=15)
    assert look(tmp_path) == (
        "nvidia-smi fails: Unable to determine the device handle for GPU0000:07:00.0: Unknown Error"
    )


def test_machine_without_nvidia_smi_is_unfit_only_where_gpus_are_wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look(tmp_path) == "nvidia-smi is missing or does not answer"
    assert look(tmp_path, num_gpus=None) is None


@pytest.mark.parametrize(
    ("error", "is_the_nodes"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EROFS, "Read-only file system"), True),
        (StoreUnreachable("no answer", "Try again."), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
        (StoreRefused("403", "Ask."), False),
        (KeyError("a bug"), False),
    ],
    ids=repr,
)
def test_only_disk_store_and_head_are_trouble_of_the_node(error, is_the_nodes):
    assert is_trouble_of_the_node(error) is is_the_nodes


def test_disk_without_room_for_the_inputs_is_a_fault(tmp_path):
    found = look(tmp_path, num_gpus=None, num_input_bytes=10**18)
    assert found is not None
    assert "1000000002.1" in found
