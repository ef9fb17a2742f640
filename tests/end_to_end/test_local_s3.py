"""`store: s3-local` by the real command line: it works, and nobody else gets in."""

from __future__ import annotations

import psutil
import pytest

from orchestrator.cloud.local.s3_server import read_server


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_run_in_the_store_of_this_machine(workplace):
    spec = workplace.write_spec(
        store="s3-local",
        train={"num_steps": 4, "global_batch": 4, "precision": "fp32"},
        checkpoints={"interval": "2 steps"},
        local={"ranks": 1, "time_scale": 60, "preemptions": []},
    )
    done = workplace.run("launch", spec, "--yes")
    assert done.returncode == 0, done.stderr
    folder = workplace.home / "s3"
    record = read_server(folder)
    server = psutil.Process(record.pid)

    assert workplace.document("status", "small")["state"] == "SUCCEEDED"
    assert workplace.document("checkpoints", "verify", "small")["problems"] == []
    listed = workplace.document("status", "--store", "s3-local")["runs"]
    assert [run["run"] for run in listed] == ["small"]

    assert {socket.laddr.ip for socket in server.net_connections("inet")} == {"127.0.0.1"}
    assert "-master.telemetry=false" in server.cmdline()
    assert record.secret_key not in " ".join(server.cmdline())
    assert (folder / "server.json").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700

    assert workplace.run("delete", "small", "--confirm", "small").returncode == 0
    assert workplace.document("status", "--store", "s3-local")["runs"] == []
    assert read_server(folder) == record  # one server all along

    server.kill()
    workplace.wait_until_quiet()
