"""Real SkyPilot in the cell: toy jobs that are preempted. Minutes each; run with -m slow."""

from __future__ import annotations

import sys
import time

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("cell")]

# What a job does: says where it is in the bucket, then waits until it is told to end.
TOY = """
import os, socket, sys, time, boto3
s3 = boto3.client("s3")
name = os.environ["NAME"]
rank, tries = os.environ["SKYPILOT_NODE_RANK"], 0
s3.put_object(Bucket="runs", Key=f"{name}/{rank}/{socket.gethostname()}",
              Body=os.environ["SKYPILOT_NODE_IPS"].encode())
while True:
    found = s3.list_objects_v2(Bucket="runs", Prefix=f"{name}/end").get("KeyCount")
    if found:
        sys.exit(0)
    time.sleep(1)
"""
SUBMIT = """
import sys, sky
from sky import jobs
name, infra, accelerators, nodes, run, setup = sys.argv[1:]
task = sky.Task(name=name, run=run, setup=setup or None, num_nodes=int(nodes), envs={"NAME": name})
task.set_resources(sky.Resources(infra=infra, accelerators=accelerators, use_spot=True))
ids, _ = sky.get(jobs.launch(task, name=name))
print(ids[0])
"""
BUCKET = """
import sys, boto3
s3 = boto3.client("s3")
if sys.argv[1] == "put":
    s3.put_object(Bucket="runs", Key=sys.argv[2], Body=b"")
for one in s3.list_objects_v2(Bucket="runs", Prefix=sys.argv[2]).get("Contents", []):
    print(one["Key"])
"""


class Toy:
    """One toy job in the cell."""

    def __init__(self, cell, name, *, infra="aws", accelerators="A100:8", nodes=1, setup=""):
        self.cell, self.name = cell, name
        run = f"~/orchestrate-env/bin/python -c '{TOY}'"
        words = [name, infra, accelerators, str(nodes), run, setup]
        done = cell.run([sys.executable, "-c", SUBMIT, *words], timeout=200)
        assert done.returncode == 0, done.stderr
        self.id = int(done.stdout.split()[-1])

    @property
    def job(self):
        return next(one for one in self.cell.jobs() if one.id == self.id)

    @property
    def living(self):
        return [one for one in self.cell.instances(f"{self.name}-{self.id}") if one.is_alive]

    def wait_for(self, condition, seconds=300):
        give_up_at = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up_at, (self.job, self.cell.instances())
            assert not self.job.is_over, self.job
            time.sleep(0.5)

    def is_running_again(self, times):
        return self.job.status == "RUNNING" and self.job.recoveries == times

    def end(self):
        self._bucket("put", f"{self.name}/end")
        give_up_at = time.monotonic() + 120
        while not self.job.is_over:
            assert time.monotonic() < give_up_at, self.job
            time.sleep(0.5)
        assert self.job.status == "SUCCEEDED", self.job

    def wrote(self):
        return self._bucket("list", f"{self.name}/")

    def _bucket(self, *words):
        return self.cell.run([sys.executable, "-c", BUCKET, *words], check=True).stdout.split()


def test_a_preempted_job_recovers_in_another_region(market):
    toy = Toy(market, "toy")
    toy.wait_for(lambda: toy.is_running_again(0))
    (first,) = toy.living
    market.preempt(first.id, 5, capacity={f"aws/{first.region}/spot": 0})
    toy.wait_for(lambda: toy.job.status == "RECOVERING", 60)
    toy.wait_for(lambda: toy.is_running_again(1))
    (second,) = toy.living
    assert second.region != first.region
    assert second.ip != first.ip
    toy.end()
    assert len([one for one in toy.wrote() if one.startswith("toy/0/")]) == 2


def test_a_gang_that_loses_one_node_is_started_anew(market):
    toy = Toy(market, "gang", accelerators="A100-80GB:8", nodes=2)
    toy.wait_for(lambda: toy.is_running_again(0))
    head, worker = toy.living
    assert (head.head, worker.head) == (True, False)
    market.preempt(worker.id, 0)
    toy.wait_for(lambda: toy.is_running_again(1))
    assert len(toy.living) == 2
    assert not {head.id, worker.id} & {one.id for one in toy.living}
    toy.end()
    assert {one.split("/")[1] for one in toy.wrote()} == {"0", "1", "end"}
