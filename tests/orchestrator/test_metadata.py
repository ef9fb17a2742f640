"""Interruption notices of each cloud, from services that are as strict as theirs."""

import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.agent.metadata import open_notices
from orchestrator.agent.notice import NoticeWatch, SourceSilent
from tests.metadata_service import AZURE_NAME, metadata_service
from train.spool import Notice, Risk, read_notice, read_risk, risk_path

AT = datetime(2026, 1, 1, 12, 0, 30, tzinfo=timezone.utc)
RFC_1123 = "Thu, 01 Jan 2026 12:00:30 GMT"


@pytest.fixture
def service(monkeypatch):
    with metadata_service() as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{service.host}")
        monkeypatch.setenv("GCE_METADATA_HOST", service.host)
        monkeypatch.setenv("AZURE_METADATA_SERVICE_ENDPOINT", f"http://{service.host}")
        yield service


def announce(service, cloud):
    match cloud:
        case "aws":
            service.spot_action = {"action": "terminate", "time": "2026-01-01T12:00:30Z"}
        case "gcp":
            service.is_preempted = True
        case "azure":
            service.scheduled_events = [event()]


def event(kind="Preempt", resources=(AZURE_NAME,), not_before=RFC_1123):
    return {
        "EventId": "A1",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": list(resources),
        "EventStatus": "Scheduled",
        "NotBefore": not_before,
        "DurationInSeconds": -1,
    }


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_nothing_is_announced_until_it_is(service, cloud):
    look = open_notices(cloud)
    assert look() is None
    announce(service, cloud)
    found = look()
    if cloud == "gcp":  # names no time: 30 s from now
        left = found.deadline_at - datetime.now(timezone.utc)
        assert timedelta(seconds=25) < left <= timedelta(seconds=30)
    else:
        assert found == Notice(deadline_at=AT)


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_the_trainer_is_told_within_seconds(service, cloud, tmp_path):
    target = tmp_path / "notice.json"
    watch = NoticeWatch(open_notices(cloud), target, poll_seconds=1.0)
    time.sleep(0.2)  # in the middle of two looks
    announced_s = time.monotonic()
    announce(service, cloud)
    while read_notice(target) is None:
        assert time.monotonic() - announced_s < 5
        time.sleep(0.01)
    assert watch.from_cloud == read_notice(target)


def test_a_rebalance_recommendation_is_a_risk_and_the_notice_after_it_a_notice(service, tmp_path):
    target = tmp_path / "notice.json"
    service.rebalance = {"noticeTime": "2026-01-01T11:58:00Z"}
    watch = NoticeWatch(open_notices("aws"), target, poll_seconds=0.01)
    give_up_at = time.monotonic() + 10
    while read_risk(risk_path(target)) is None and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert read_risk(risk_path(target)) == Risk(noted_at=AT - timedelta(seconds=150))
    assert watch.from_cloud is None
    announce(service, "aws")
    while watch.from_cloud is None and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert read_notice(target) == Notice(deadline_at=AT)


def test_an_expired_token_is_renewed(service):
    look = open_notices("aws")
    assert look() is None
    service.expire_token()
    assert look() is None
    announce(service, "aws")
    assert look() == Notice(deadline_at=AT)


@pytest.mark.parametrize(
    ("events", "deadline_at"),
    [
        ([event(resources=["node-2"])], None),
        ([event("Freeze")], None),
        ([event("Reboot")], AT),
        ([event("Redeploy", not_before="Thu, 01 Jan 2026 12:09:00 GMT"), event()], AT),
    ],
    ids=["of another node", "a pause", "a reboot", "the earlier of two"],
)
def test_azure_s_events_that_end_this_node_count(service, events, deadline_at):
    service.scheduled_events = events
    found = open_notices("azure")()
    assert (found and found.deadline_at) == deadline_at


def test_an_event_that_has_begun_is_due_now(service):
    service.scheduled_events = [event(not_before="")]
    found = open_notices("azure")()
    assert abs(found.deadline_at - datetime.now(timezone.utc)) < timedelta(seconds=5)


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(garbage=st.binary(max_size=80) | st.sampled_from([b"{}", b"[]", b"null", b'{"time": 1}']))
def test_a_reply_that_makes_no_sense_is_no_notice(service, cloud, garbage):
    service.garbage = garbage
    announce(service, cloud)
    with suppress(SourceSilent):
        assert open_notices(cloud)() is None


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_the_watch_outlives_a_service_that_does_not_answer(service, cloud, tmp_path, caplog):
    service.garbage = b"\0"
    announce(service, cloud)
    watch = NoticeWatch(open_notices(cloud), tmp_path / "notice.json", poll_seconds=0.01)
    give_up_at = time.monotonic() + 20
    while not caplog.records and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert watch.from_cloud is None
    service.garbage = None
    while watch.from_cloud is None and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert watch.from_cloud is not None
    assert len(caplog.records) == 1


def test_a_service_that_is_not_there_is_silent(monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceSilent, match="aws: "):
        open_notices("aws")()


def test_other_clouds_give_no_notice():
    assert open_notices("lambda")() is None
