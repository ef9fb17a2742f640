"""A run tells each fact once, to a real service, whoever is killed meanwhile."""

from __future__ import annotations

import json
import time

import pytest

from orchestrator.notify.addresses import NOTIFY
from tests.message_service import SECRET, receiving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROUGH = {
    "ranks": 2,
    "time_scale": 600,
    "preemptions": [{"after_step": 4}, {"after_step": 8, "notice_seconds": 5}],
}


@pytest.fixture
def service(workplace):
    with receiving() as service:
        workplace.environment[NOTIFY] = service.address
        yield service


def launch_as_often_as_needed(workplace, spec) -> None:
    for _ in range(6):
        done = workplace.run("launch", spec, "--yes")
        if done.returncode == 0:
            return
        assert "Run the same command again" in done.stderr
    raise AssertionError(done.stderr)


def told(service) -> list[str]:
    return [title.removeprefix("small: ") for title in service.titles]


def test_each_fact_is_told_once_though_the_supervisor_is_killed_again_and_again(workplace, service):
    spec = workplace.write_spec(local=ROUGH, tracking={"notify": {}}, limits={"budget_usd": 2000})
    for num_messages in (1, 2):
        watcher = workplace.start("launch", spec, "--yes")
        kill_between_messages(workplace, num_messages)
        watcher.communicate(timeout=90)
    launch_as_often_as_needed(workplace, spec)
    status = workplace.document("status", "small")
    # A supervisor that dies while a notice runs takes its node along: that is no preemption.
    lost = [one for one in status["attempts"] if one["end_reason"] == "preempted"]
    assert status["num_preemptions"] == len(lost) >= 1
    titles = told(service)
    assert len(titles) == len(set(titles))
    wanted = {f"attempt {one['attempt']} was preempted" for one in lost}
    assert {title for title in titles if "preempted" in title} == wanted
    assert titles[-1] == "finished"
    texts = " ".join(service.texts)
    assert ("without notice" in texts) == any(not one["had_notice"] for one in lost)
    assert ("after a notice" in texts) == any(one["had_notice"] for one in lost)
    assert "may have been sent before" not in texts
    workplace.wait_until_quiet()
    assert num_marked(workplace) == len(titles)
    assert_secret_is_nowhere(workplace)


def kill_between_messages(workplace, num_messages: int) -> None:
    """Kill the supervisor when so many are out and none is on its way; that is a unit test."""
    give_up_at = time.monotonic() + 120
    while True:
        workplace.wait_for(lambda: num_marked(workplace) >= num_messages)
        supervisors = workplace.supervisors()
        for supervisor in supervisors:
            supervisor.suspend()
        if num_claimed(workplace) == num_marked(workplace):
            for supervisor in supervisors:
                supervisor.kill()
            return
        for supervisor in supervisors:
            supervisor.resume()
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def claims(workplace) -> list[dict[str, object]]:
    folder = workplace.folder / "store" / "small" / "notified"
    return [json.loads(one.read_text()) for one in folder.glob("*")]


def num_claimed(workplace) -> int:
    return len(claims(workplace))


def num_marked(workplace) -> int:
    return sum(one["sent_at"] is not None for one in claims(workplace))


def assert_secret_is_nowhere(workplace) -> None:
    files = [path for path in workplace.folder.rglob("*") if path.is_file()]
    assert any(path.name == "supervisor.log" for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_the_end_is_told_and_nodes_do_not_have_the_address(workplace, service):
    spec = workplace.write_spec(tracking={"notify": {}}, train={"num_steps": 200})
    assert workplace.run("launch", spec, "--yes", "--detach").returncode == 0
    workplace.wait_for(lambda: any("train" in one.cmdline() for one in workplace.processes()))
    nodes = [one for one in workplace.processes() if "ORCHESTRATE_NODE" in one.environ()]
    assert nodes
    assert not [one.cmdline() for one in nodes if SECRET in repr(one.environ())]
    assert workplace.run("stop", "small", "--yes").returncode == 0
    workplace.wait_until_quiet()
    assert told(service) == ["stopped, as requested"]
    assert "orchestrate resume small" in service.texts[0]


def test_a_service_that_is_down_for_the_whole_run_holds_nothing_up(workplace, service):
    service.status = 503
    workplace.environment[NOTIFY] = ""
    workplace.home.mkdir()
    (workplace.home / "notify").write_text(f"# mine\n{service.address}\n")
    spec = workplace.write_spec(tracking={"notify": {}})
    done = workplace.run("launch", spec, "--yes")
    assert done.returncode == 0, done.stderr
    finished_at = time.monotonic()
    workplace.wait_until_quiet(seconds=30)
    assert time.monotonic() - finished_at < 25
    assert service.num_refused > 0
    assert service.titles == []
